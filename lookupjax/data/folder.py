"""Your own images without preparation: a folder for each class, or a CSV of paths and labels.

    name="folder", dir=FOLDER:
      FOLDER/train/CLASS/*.jpg, FOLDER/val/CLASS/*.jpg   the splits as they are (or validation, valid, test)
      FOLDER/CLASS/*.jpg                                 a tenth of each class is set aside as "validation"
    dir=FILE.csv: a line "path,label[,split]" for each image, with these words as its first line; relative
      paths start at the file's folder. Without the third column a tenth is set aside as above.

What is set aside depends on the files' names alone, so that it stays the same when images are added.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lookupjax.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
HELD_OUT = 10  # one image in so many
COLUMNS = ("path", "label", "split")

Item = tuple[Path, str]  # file and class


@dataclass(frozen=True)
class Folder:
    """Classes in alphabetical order, and the (file, number of its class) of every split."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[tuple[Path, int], ...]]


@dataclass(frozen=True)
class FolderSource:
    """The examples of a split, with their encoded images."""

    items: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        path, label = self.items[index]
        return read_encoded(path) | {"label": label}

    @property
    def class_numbers(self) -> list[int]:
        return [label for _, label in self.items]


def read_encoded(path: Path) -> dict[str, bytes]:
    """The image as it is stored, and its name.

    Raises:
      ValueError: when it cannot be read, which counts as a corrupt record.
    """
    try:
        return {"image": path.read_bytes(), "file_name": str(path).encode()}
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None


def in_classes(root: Path) -> list[Item]:
    """The images of root/CLASS, at any depth, in the order of their names."""
    return [
        (path, directory.name)
        for directory in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        for path in sorted(directory.rglob("*"))
        if path.suffix.lower() in IMAGES and not path.name.startswith(".")
    ]


def set_aside(items: Sequence[Item], root: Path) -> dict[str, list[Item]]:
    """A tenth of each class, at least one of two, for validation."""
    by_class = defaultdict(list)
    for path, label in items:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        by_class[label].append((hashlib.sha256(name.as_posix().encode()).hexdigest(), path))
    splits: dict[str, list[Item]] = {"train": [], "validation": []}
    for label, found in by_class.items():
        held = [f for f in found if int(f[0], 16) % HELD_OUT == 0] or sorted(found)[: len(found) > 1]
        for entry in found:
            splits["validation" if entry in held and len(held) < len(found) else "train"].append(
                (entry[1], label)
            )
    return splits


def from_tree(root: Path) -> dict[str, list[Item]]:
    """Items by split of a folder."""
    parts = {
        p: SPLITS[p.name.lower()] for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLITS
    }
    if "train" not in parts.values():
        return set_aside(in_classes(root), root)
    splits = defaultdict(list)
    for directory, split in parts.items():
        splits[split] += in_classes(directory)
    if set(splits) == {"train"}:
        return set_aside(splits["train"], root)
    splits.setdefault("validation", splits.get("test", []))
    return dict(splits)


def from_csv(file: Path) -> dict[str, list[Item]]:
    """Items by split of a CSV.

    Raises:
      UserError: without the columns, for an unknown split or an image that does not exist.
    """
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    if not {"path", "label"} <= set(columns):
        raise UserError(f'{file}: its first line must name the columns "path,label" or "path,label,split"')
    splits = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        path, given = file.parent / row["path"], (row.get("split") or "").strip().lower()
        if given and given not in SPLITS:
            raise UserError(f"{file}, line {number}: split {given!r} is none of {sorted(SPLITS)}")
        if not path.is_file():
            raise UserError(f"{file}, line {number}: there is no image {path}")
        splits[SPLITS.get(given, "train")].append((path, row["label"].strip()))
    return set_aside(splits["train"], file.parent) if set(splits) == {"train"} else dict(splits)


@lru_cache(maxsize=4)
def read_folder(directory: str) -> Folder:
    """The classes and splits of a folder or CSV.

    Raises:
      UserError: when there is none, or it holds no images of at least two classes to train on.
    """
    root = Path(directory).expanduser()
    if not directory or not root.exists():
        raise UserError(
            f"there is no folder or CSV {directory!r}: --config.data.dir names a folder of classes, or a CSV"
        )
    splits = from_csv(root) if root.is_file() else from_tree(root)
    known = Counter(label for _, label in splits.get("train", ()))
    if len(known) < 2:
        raise UserError(
            f"{root} holds training images of {len(known)} classes ({sorted(known)}): it needs two or more, "
            f"each in a folder CLASS or train/CLASS of {', '.join(sorted(IMAGES))} files"
        )
    for split, items in splits.items():
        strange = sorted({label for _, label in items} - set(known))
        if strange:
            raise UserError(
                f"{root}: {split} has images of {strange[:5]}, of which there are none to train on"
            )
    classes = tuple(sorted(known))
    numbers = {name: i for i, name in enumerate(classes)}
    return Folder(
        classes, {s: tuple((p, numbers[c]) for p, c in items) for s, items in splits.items() if items}
    )


def folder_source(directory: str, split: str) -> FolderSource:
    """The examples of "train", "validation" or, where there is one, "test".

    Raises:
      UserError: when there is no such split.
    """
    splits = read_folder(directory).splits
    if split not in splits:
        raise UserError(f"{directory} has no split {split!r}; it has {sorted(splits)}")
    return FolderSource(splits[split])
