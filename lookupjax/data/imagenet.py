"""The ImageNet family in its official layouts: what `lookupjax.data.prepare` knows of each.

    imagenet2012       ILSVRC2012_img_{train,val}.tar (train: a tar of one tar per class) and the devkit, or
                       train/WNID/* and val/WNID/* (or val/* with the devkit)
    imagenet2012_real  the validation images as above, and real.json (arXiv 2006.07159)
    imagenet21k        a folder or tar per class, named by its WordNet id
    imagenet_v2        folders 0 .. 999          imagenet_a, _r, _sketch, _o   folders named by WordNet ids
    imagenet_c         CORRUPTION/SEVERITY/WNID/*: one split per pair, such as "gaussian_noise_3"

Folders may lie in further folders or in .tar files. Labels are indices into the 1,000 sorted WordNet ids,
whose list TFDS ships; imagenet_a and imagenet_r have those of them that occur (200), imagenet21k and
imagenet_o their own. Class names are the ids; readable names come from the devkit's meta.mat or from
--synsets (lines "n01440764 tench, Tinca tinca").
"""

import io
import json
import re
from collections.abc import Callable, Iterable

import tensorflow_datasets as tfds
from etils import epath
from scipy.io import loadmat

from lookupjax.data.archives import Place, list_files, small_archive
from lookupjax.data.shards import Collection, Item, check_counts
from lookupjax.errors import UserError, nearest

COUNTS = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "imagenet2012_real": {"validation": 50_000},
    "imagenet21k": {},
    "imagenet_v2": {"test": 10_000},
    "imagenet_a": {"test": 7_500},
    "imagenet_r": {"test": 30_000},
    "imagenet_o": {"test": 2_000},
    "imagenet_sketch": {"test": 50_889},
    "imagenet_c": {},  # 50,000 in each split
}
VERSIONS = {"imagenet2012": "5.1.0", "imagenet_v2": "3.0.0"}  # TFDS's, same features; others 1.0.0
WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"

Listed = list[tuple[str, Place]]


def wnids_1k() -> list[str]:
    """The WordNet ids of the 1,000 classes, sorted: the labels' order everywhere."""
    return tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()


def folder(name: str, up: int = 1) -> str:
    """The `up`-th enclosing folder of an image's name, or ""."""
    parts = name.split("/")
    return parts[-1 - up] if len(parts) > up else ""


def label_by_folder(listed: Iterable[tuple[str, Place]], classes: list[str]) -> list[Item]:
    """Items labelled by the folder they lie in.

    Raises:
      UserError: for an image in a folder that is no class.
    """
    index = {name: i for i, name in enumerate(classes)}
    items = []
    for name, place in listed:
        if folder(name) not in index:
            raise UserError(
                f"{name!r} lies in {folder(name) or 'no folder'!r}, none of the {len(classes)} classes"
                f"{nearest(folder(name), classes)}; move it away or correct the folder's name"
            )
        items.append(Item(name, place, index[folder(name)]))
    return items


def find(source: epath.Path, *names: str) -> epath.Path | None:
    """The first of `names` that is in the source directory."""
    return next((source / name for name in names if (source / name).exists()), None)


def read_devkit(source: epath.Path) -> tuple[list[int], dict[int, tuple[str, str]]] | None:
    """(ground truth per validation image, {ILSVRC2012 id: (wnid, words)}) of the devkit, or None."""
    archive = find(source, f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar")
    if archive:
        with small_archive(archive) as files:
            truth, meta = files.get(GROUND_TRUTH), files.get("meta.mat")
    else:
        data = find(source, f"{DEVKIT}/data", "data", "devkit/data")
        if data is None:
            return None
        truth, meta = (
            (data / n).read_bytes() if (data / n).exists() else None for n in (GROUND_TRUTH, "meta.mat")
        )
    if truth is None or meta is None:
        raise UserError(
            f"the devkit in {source} lacks {GROUND_TRUTH} or meta.mat; fetch {DEVKIT}.tar.gz again"
        )
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    names = {int(s["ILSVRC2012_ID"]): (str(s["WNID"]), str(s["words"])) for s in synsets}
    return [int(line) for line in truth.decode().split()], names


def validation_items(source: epath.Path, classes: list[str]) -> list[Item]:
    """The labelled validation images: by folders, by the devkit, else by the list that TFDS ships."""
    place = find(source, "ILSVRC2012_img_val.tar", "val", "validation")
    if place is None:
        return []
    listed = list(list_files(place))
    if listed and all(WNID.fullmatch(folder(name)) for name, _ in listed):
        return label_by_folder(listed, classes)
    devkit = read_devkit(source)
    if devkit is not None:
        truth, names = devkit
        wnids = []
        for number in truth:
            if number not in names:
                raise UserError(
                    f"{GROUND_TRUTH}: label {number} is out of range; it is no ILSVRC2012 id of meta.mat"
                )
            wnids.append(names[number][0])
    else:
        wnids = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    items = []
    for name, where in listed:
        number = image_number(name)
        if not 1 <= number <= len(wnids):
            raise UserError(f"{name!r} has no line among the {len(wnids)} of the validation ground truth")
        wnid = wnids[number - 1]
        if wnid not in classes:
            raise UserError(f"the validation ground truth names {wnid!r}, which is none of the classes")
        items.append(Item(name, where, classes.index(wnid)))
    return items


def image_number(name: str) -> int:
    """12 for "ILSVRC2012_val_00000012.JPEG", 0 for other names."""
    match = re.search(r"val_(\d{8})\.", name)
    return int(match[1]) if match else 0


def need(source: epath.Path, what: str, items: list, partial: bool) -> None:
    if not items and not partial:
        there = sorted(p.name for p in source.iterdir())[:8]
        raise UserError(f"{source} has no {what}; it holds {there}. Give the folder of the official archives")


def features(classes: list[str]) -> dict:
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=classes),
        "file_name": tfds.features.Text(),
    }


def collect_2012(source: epath.Path, partial: bool) -> tuple[dict[str, list[Item]], list[str]]:
    classes = wnids_1k()
    train = find(source, "ILSVRC2012_img_train.tar", "train")
    splits = {"train": label_by_folder(list_files(train), classes) if train else []}
    need(source, "ILSVRC2012_img_train.tar or train/", splits["train"], partial)
    splits["validation"] = validation_items(source, classes)
    need(source, "ILSVRC2012_img_val.tar or val/", splits["validation"], partial)
    return {split: items for split, items in splits.items() if items}, classes


def collect_real(source: epath.Path, partial: bool) -> tuple[dict[str, list[Item]], list[str]]:
    classes = wnids_1k()
    items = validation_items(source, classes)
    need(source, "ILSVRC2012_img_val.tar or val/", items, partial)
    if not (source / "real.json").exists():
        raise UserError(
            f"{source} has no real.json, the reassessed labels (google-research/reassessed-imagenet)"
        )
    labels = json.loads((source / "real.json").read_text())
    if not isinstance(labels, list) or any(not 0 <= x < 1000 for row in labels for x in row):
        raise UserError(f"{source}/real.json is not a list of lists of labels between 0 and 999")
    if any(not 1 <= image_number(item.name) <= len(labels) for item in items):
        raise UserError(f"{source}/real.json has {len(labels)} lines, fewer than there are validation images")
    return {"validation": [i._replace(extra=labels[image_number(i.name) - 1]) for i in items]}, classes


def own_classes(source: epath.Path, split: str) -> tuple[dict[str, list[Item]], list[str]]:
    listed = list(list_files(source))
    classes = sorted({folder(name) for name, _ in listed})
    strange = [name for name in classes if not WNID.fullmatch(name)]
    if strange:
        raise UserError(
            f"{source} has images in {strange[0] or 'no folder'!r}, which is no WordNet id (n + 8 digits)"
        )
    return {split: label_by_folder(listed, classes)}, classes


def collect_subset(source: epath.Path) -> tuple[dict[str, list[Item]], list[str]]:
    """Sets with some of the 1,000 classes only (-A and -R: 200) have those as theirs."""
    listed = list(list_files(source))
    label_by_folder(listed, wnids_1k())  # says which folder is no class
    present = {folder(name) for name, _ in listed}
    classes = [wnid for wnid in wnids_1k() if wnid in present]
    return {"test": label_by_folder(listed, classes)}, classes


def collect_test(source: epath.Path, folders: list[str]) -> tuple[dict[str, list[Item]], list[str]]:
    return {"test": label_by_folder(list_files(source), folders)}, wnids_1k()


def collect_c(source: epath.Path) -> tuple[dict[str, list[Item]], list[str]]:
    classes, splits = wnids_1k(), {}
    for name, place in list_files(source):
        corruption, severity = folder(name, 3), folder(name, 2)
        if not corruption or severity not in "12345" or not severity:
            raise UserError(f"{name!r}: ImageNet-C is CORRUPTION/SEVERITY (1 to 5)/WNID/image")
        splits.setdefault(f"{corruption}_{severity}", []).append((name, place))
    return {split: label_by_folder(listed, classes) for split, listed in sorted(splits.items())}, classes


COLLECTORS: dict[str, Callable[[epath.Path, bool], tuple[dict[str, list[Item]], list[str]]]] = {
    "imagenet2012": collect_2012,
    "imagenet2012_real": collect_real,
    "imagenet21k": lambda source, _: own_classes(source, "train"),
    "imagenet_v2": lambda source, _: collect_test(source, [str(i) for i in range(1000)]),
    "imagenet_a": lambda source, _: collect_subset(source),
    "imagenet_r": lambda source, _: collect_subset(source),
    "imagenet_sketch": lambda source, _: collect_test(source, wnids_1k()),
    "imagenet_o": lambda source, _: own_classes(source, "test"),
    "imagenet_c": lambda source, _: collect_c(source),
}


def readable_names(source: epath.Path, synsets: str, classes: list[str]) -> tuple[str, ...]:
    """The words of each class, from `synsets` or the devkit; () when neither is there.

    Raises:
      UserError: when the file lacks a class.
    """
    if synsets:
        lines = [line.partition(" ") for line in epath.Path(synsets).read_text().splitlines() if line.strip()]
        words = {wnid: text.strip() for wnid, _, text in lines}
        missing = [wnid for wnid in classes if not words.get(wnid)]
        if missing:
            raise UserError(f"{synsets} has no words for {missing[0]} and {len(missing) - 1} other classes")
    else:
        devkit = read_devkit(source)
        words = dict(devkit[1].values()) if devkit else {}
    return tuple(words[wnid] for wnid in classes) if all(wnid in words for wnid in classes) else ()


def collect(name: str, source: str, *, partial: bool = False, synsets: str = "") -> Collection:
    """Lists the images of one dataset of the family and their labels.

    Args:
      source: the directory of its archives or folders.
      partial: accept fewer images than the official set has.
      synsets: a file of readable class names.

    Raises:
      UserError: for a missing or damaged archive, an unknown class, a label out of range, wrong counts.
    """
    root = epath.Path(source)
    if not root.is_dir():
        raise UserError(
            f"--source={source} is not a directory; give the one that holds the archives of {name}"
        )
    splits, classes = COLLECTORS[name](root, partial)
    expected = dict.fromkeys(splits, 50_000) if name == "imagenet_c" else COUNTS[name]
    notes = list(check_counts(splits, expected, partial))
    words = readable_names(root, synsets, classes) if name in ("imagenet2012", "imagenet21k") else ()
    kinds = features(classes)
    if name == "imagenet2012_real":
        label = tfds.features.ClassLabel(names=classes)
        kinds |= {"original_label": label, "real_label": tfds.features.Sequence(label)}

    def fields(item: Item) -> dict:
        if name == "imagenet2012_real":
            return {"label": item.label, "original_label": item.label, "real_label": item.extra}
        return {"label": item.label}

    return Collection(VERSIONS.get(name, "1.0.0"), splits, kinds, fields, words, notes)
