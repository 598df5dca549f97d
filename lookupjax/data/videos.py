"""Kinetics-400 and Something-Something v2 in their official layouts: what `lookupjax.data.prepare` knows.

    kinetics400             train.csv, val.csv (or validate.csv) and test.csv with the columns label,
                            youtube_id, time_start, time_end; clips anywhere below, named
                            ID_SSSSSS_EEEEEE.mp4 (start and end in six digits) or ID.mp4
    something_something_v2  labels.json, train.json, validation.json (with or without the prefix
                            "something-something-v2-"); clips anywhere below, named ID.webm

Annotation files may lie in any folder below the source. Clips may be in tars; the distributed .tar.gz and
split archives have to be unpacked first. A listed clip that is not there is named in problems.txt: of
Kinetics, which is collected from the web, some always are.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds
from etils import epath

from lookupjax.data import video
from lookupjax.data.archives import VIDEOS, Place, list_files
from lookupjax.data.shards import Collection, Item, check_counts
from lookupjax.errors import UserError

SHARD_EXAMPLES = 256
SPLITS = {"train": "train", "val": "validation", "validate": "validation", "validation": "validation"}
SPLITS |= {"test": "test"}
COUNTS = {  # of clips; Kinetics has none that is the same for everybody
    "kinetics400": {},
    "something_something_v2": {"train": 168_913, "validation": 24_777},
}
CLASSES = {"kinetics400": 400, "something_something_v2": 174}
MAX_MISSING = 0.25  # share of listed clips above which the source counts as incomplete

Row = tuple[str, str, tuple[str, ...]]  # (split, class name, names of the file without suffix)


def annotations(source: epath.Path, suffix: str) -> Iterator[epath.Path]:
    """The files with that suffix below a directory, sorted; hidden ones are passed over."""
    for child in sorted(source.iterdir(), key=lambda p: p.name):
        if child.is_dir():
            yield from annotations(child, suffix)
        elif child.name.endswith(suffix) and not child.name.startswith("."):
            yield child


def split_of(path: epath.Path) -> str | None:
    """The split that an annotation file is about, by the last word of its name."""
    return SPLITS.get(re.split(r"[-_.]", path.stem)[-1])


def kinetics_rows(source: epath.Path) -> tuple[list[Row], list[str]]:
    """(rows, class names) of Kinetics' CSV files."""
    rows: list[Row] = []
    for path in annotations(source, ".csv"):
        split = split_of(path)
        lines = csv.DictReader(io.StringIO(path.read_text()))
        if split is None or not {"label", "youtube_id"} <= set(lines.fieldnames or ()):
            continue
        for line in lines:
            name: str = line["youtube_id"]
            span: tuple[str, ...] = ()
            if line.get("time_start") and line.get("time_end"):
                start, end = int(float(line["time_start"])), int(float(line["time_end"]))
                span = (f"{name}_{start:06d}_{end:06d}",)
            rows.append((split, line["label"].strip(), (*span, name)))
    if not rows:
        raise UserError(
            f"{source} has no annotation file of Kinetics: train.csv or val.csv with label and youtube_id"
        )
    return rows, sorted({label for _, label, _ in rows})


def something_rows(source: epath.Path) -> tuple[list[Row], list[str]]:
    """(rows, class names) of Something-Something's JSON files; test.json has no labels and is not read."""
    found = {path.stem.removeprefix("something-something-v2-"): path for path in annotations(source, ".json")}
    if "labels" not in found or not {"train", "validation"} & set(found):
        raise UserError(f"{source} has no labels.json with train.json or validation.json beside it")
    numbers = json.loads(found["labels"].read_text())
    names = sorted(numbers, key=lambda name: int(numbers[name]))
    rows: list[Row] = []
    for split in ("train", "validation"):
        for entry in json.loads(found[split].read_text()) if split in found else ():
            name = re.sub(r"[\[\]]", "", entry["template"])
            if name not in numbers:
                raise UserError(f"{found[split]}: the template {name!r} is not in {found['labels']}")
            rows.append((split, name, (str(entry["id"]),)))
    return rows, names


COLLECTORS: dict[str, Callable[[epath.Path], tuple[list[Row], list[str]]]] = {
    "kinetics400": kinetics_rows,
    "something_something_v2": something_rows,
}


def collect(name: str, source: str, *, partial: bool = False, short_side: int = 0) -> Collection:
    """Lists the clips of a dataset and their labels.

    Args:
      partial: accept fewer clips or classes than the official set has.
      short_side: see `lookupjax.data.video.shrink`; 0 stores the original bytes.

    Raises:
      UserError: for missing or malformed annotations, no clips, or far fewer than are listed.
    """
    root = epath.Path(source)
    if not root.is_dir():
        raise UserError(f"--source={source} is not a directory; give the one that holds {name}")
    video.pyav()
    rows, classes = COLLECTORS[name](root)
    files: dict[str, tuple[str, Place]] = {}
    for file, place in list_files(root, VIDEOS):
        files.setdefault(file.rsplit("/", 1)[-1].rpartition(".")[0], (file, place))
    splits: dict[str, list[Item]] = {}
    missing, index = [], {label: i for i, label in enumerate(classes)}
    for split, label, stems in rows:
        items = splits.setdefault(split, [])
        stem = next((stem for stem in stems if stem in files), None)
        if stem is None:
            missing.append(f"{split}/{stems[0]}")
        else:
            items.append(Item(*files[stem], index[label]))
    notes = check_missing(missing, len(rows), root, partial)
    splits = {split: items for split, items in splits.items() if items or split != "test"}
    notes += check_counts(splits, COUNTS[name], partial, "video")
    if len(classes) != CLASSES[name]:
        text = f"{len(classes)} classes, {CLASSES[name]} in the official set"
        if not partial:
            raise UserError(f"{text}; complete the annotations, or accept it with --partial")
        notes.append(text)
    features = {
        "video": tfds.features.Text(doc="encoded bytes"),
        "file_name": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=classes),
    }

    def store(encoded: bytes) -> bytes:
        if short_side:
            return video.shrink(encoded, short_side)
        video.check(encoded)
        return encoded

    return Collection(
        "1.0.0",
        splits,
        features,
        lambda item: {"label": item.label},
        notes=notes,
        media="video",
        store=store,
        recipe=f"short side {short_side}" if short_side else "",
        problems=[f"{name}: listed, but not there" for name in missing],
    )


def check_missing(missing: list[str], listed: int, source: epath.Path, partial: bool) -> list[str]:
    """A note about listed clips that are not there.

    Raises:
      UserError: when that is all of them or, unless `partial`, more than MAX_MISSING.
    """
    if not missing:
        return []
    text = f"{len(missing):,} of {listed:,} listed clips are not below {source}, such as {missing[0]}"
    if len(missing) == listed or (len(missing) > MAX_MISSING * listed and not partial):
        raise UserError(
            f"{text}; complete the source" + (", or accept it with --partial" * (listed > len(missing)))
        )
    return [text]
