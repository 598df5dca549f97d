"""Re-identification images by their file names, without preparation: Market-1501, DukeMTMC-reID, VeRi-776.

    name="reid", dir=FOLDER:
      FOLDER/bounding_box_train/0002_c1s1_000451_03.jpg    split "train"     (or image_train)
      FOLDER/query/...                                     split "query"     (or image_query)
      FOLDER/bounding_box_test/...                         split "gallery"   (or image_test)

A name begins with the identity and the camera, "0002_c1". Training labels are numbered from 0; identities of
the other two are other people and keep their own numbers. Identity -1 (junk) is left out, 0 are distractors.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lookupjax.data.folder import IMAGES, read_encoded
from lookupjax.errors import UserError

FOLDERS = {
    "train": ("bounding_box_train", "image_train"),
    "query": ("query", "image_query"),
    "gallery": ("bounding_box_test", "image_test"),
}
NAME = re.compile(r"(-?\d+)_c(\d+)")


@dataclass(frozen=True)
class ReidSource:
    """(file, identity, camera) of every image of a split."""

    items: tuple[tuple[Path, int, int], ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        path, label, camera = self.items[index]
        return read_encoded(path) | {"label": label, "camera": camera}

    @property
    def class_numbers(self) -> list[int]:
        return [label for _, label, _ in self.items]


@lru_cache(maxsize=2)
def read_reid(directory: str) -> dict[str, ReidSource]:
    """The three splits.

    Raises:
      UserError: when a folder is missing, or an image's name has no identity and camera.
    """
    root, splits = Path(directory).expanduser(), {}
    for split, names in FOLDERS.items():
        found = [root / name for name in names if (root / name).is_dir()]
        if not found:
            raise UserError(f"{directory!r} has no folder {' or '.join(names)} for the split {split!r}")
        items = []
        for path in sorted(p for p in found[0].iterdir() if p.suffix.lower() in IMAGES):
            match = NAME.match(path.name)
            if match is None:
                raise UserError(
                    f'{path}: the name has no identity and camera, such as "0002_c1s1_000451_03.jpg"'
                )
            if int(match[1]) >= 0:
                items.append((path, int(match[1]), int(match[2])))
        splits[split] = ReidSource(tuple(items))
    numbers = {identity: i for i, identity in enumerate(sorted(set(splits["train"].class_numbers)))}
    splits["train"] = ReidSource(tuple((p, numbers[i], c) for p, i, c in splits["train"].items))
    return splits
