"""COCO's captions in their official layout: what `lookupjax.data.prepare` knows of them.

    annotations/captions_train2014.json, captions_val2014.json     or 2017, or both lying in DIR itself
    train2014/*.jpg, val2014/*.jpg                                 or 2017; folders or .tar, at any depth
    dataset_coco.json                                              Karpathy's splits, for `coco_captions`

    coco_captions        splits train, restval, val, test (Karpathy & Fei-Fei 2015), images of either year
    coco_captions_2014   official splits train, val          coco_captions_2017   the same of 2017

Features are those of TFDS's `coco_captions` without the objects. What is wrong with a line of a caption file
is reported, that line is left out, and the rest goes on.
"""

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from lookupjax.data.archives import Place, list_files
from lookupjax.data.shards import Collection, Item, check_counts
from lookupjax.errors import UserError

COUNTS = {
    "coco_captions": {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000},
    "coco_captions_2014": {"train": 82_783, "val": 40_504},
    "coco_captions_2017": {"train": 118_287, "val": 5_000},
}
YEARS = {"coco_captions": ("2014", "2017"), "coco_captions_2014": ("2014",), "coco_captions_2017": ("2017",)}
KARPATHY = "dataset_coco.json"
NUMBER = re.compile(r"(\d{12})\.\w+$")  # COCO_val2014_000000000042.jpg, 000000000042.jpg

Captions = dict[int, list[tuple[int, str]]]  # {image id: [(annotation id, text)]}


def read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from None


def annotation_files(source: epath.Path, years: tuple[str, ...]) -> dict[str, epath.Path]:
    """{"train": file, "val": file} of the first year that is there.

    Raises:
      UserError: when a split has no file in any year.
    """
    for year in years:
        found = {}
        for split in ("train", "val"):
            name = f"captions_{split}{year}.json"
            place = next((p for p in (source / "annotations" / name, source / name) if p.exists()), None)
            if place is not None:
                found[split] = place
        if len(found) == 2:
            return found
    wanted = " or ".join(f"captions_train{year}.json and captions_val{year}.json" for year in years)
    raise UserError(f"{source} has no {wanted}, neither there nor in annotations/")


class Images:
    """The image files of a source by name and by number."""

    def __init__(self, source: epath.Path):
        self.by_name: dict[str, tuple[str, Place]] = {}
        self.by_number: dict[int, tuple[str, Place]] = {}
        for name, place in list_files(source):
            base = name.rsplit("/", 1)[-1]
            self.by_name[base] = (name, place)
            if number := NUMBER.search(base):
                self.by_number.setdefault(int(number[1]), (name, place))

    def find(self, name: str, number: int) -> tuple[str, Place] | None:
        return self.by_name.get(name) or self.by_number.get(number)


def read_captions(path: epath.Path, images: Images) -> tuple[Captions, dict[int, str], list[str]]:
    """(captions per image, file names per image, what is wrong) of one official file.

    Raises:
      UserError: when it is no caption file at all.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise UserError(f"{path} is no caption file of COCO: it has no 'images' and 'annotations'")
    names, captions, problems, seen = {}, {}, [], set()
    for number, entry in enumerate(content["images"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or "file_name" not in entry:
            problems.append(f"{path.name}: image {number} has no id or file_name; left out")
        elif images.find(entry["file_name"], entry["id"]) is None:
            problems.append(
                f"{path.name}: image {entry['id']}: there is no file {entry['file_name']}; left out"
            )
        else:
            names[entry["id"]] = entry["file_name"]
    for number, entry in enumerate(content["annotations"]):
        where = f"{path.name}: annotation {number}"
        kinds = {"id": int, "image_id": int, "caption": str}
        if not isinstance(entry, dict) or any(not isinstance(entry.get(k), t) for k, t in kinds.items()):
            problems.append(f"{where} has no id, image_id or caption; left out")
            continue
        where, text = f"{where} (id {entry['id']})", " ".join(entry["caption"].split())
        if entry["id"] in seen:
            problems.append(f"{where}: the id occurs before; left out")
        elif entry["image_id"] not in names:
            problems.append(f"{where}: there is no image {entry['image_id']}; left out")
        elif not text:
            problems.append(f"{where}: the caption is empty; left out")
        else:
            if not text.isascii():
                problems.append(f"{where}: not ASCII, kept as it is: {text}")
            captions.setdefault(entry["image_id"], []).append((entry["id"], text))
        seen.add(entry["id"])
    problems += [f"{path.name}: image {i} has no caption; left out" for i in names if i not in captions]
    return captions, names, problems


def karpathy_splits(source: epath.Path, known: Captions) -> tuple[dict[str, list[int]], list[str]]:
    """({split: image ids}, what is wrong).

    Raises:
      UserError: when the file is missing or another one.
    """
    path = source / KARPATHY
    if not path.exists():
        raise UserError(
            f"{source} has no {KARPATHY} (Karpathy's caption_datasets.zip); without it prepare "
            "coco_captions_2014 or coco_captions_2017"
        )
    content = read_json(path)
    splits: dict[str, list[int]] = {split: [] for split in COUNTS["coco_captions"]}
    problems = []
    for number, entry in enumerate(content.get("images", []) if isinstance(content, dict) else []):
        split, image = entry.get("split"), entry.get("cocoid")
        if split not in splits or not isinstance(image, int):
            problems.append(f"{KARPATHY}: entry {number} has no known split or cocoid; left out")
        elif image not in known:
            problems.append(f"{KARPATHY}: image {image} has no captions or no file; left out")
        else:
            splits[split].append(image)
    return splits, problems


def collect(name: str, source: str, *, partial: bool = False) -> Collection:
    """Lists the images and captions of one set.

    Raises:
      UserError: for missing files, or other numbers of images than the official set has.
    """
    root = epath.Path(source)
    if not root.is_dir():
        raise UserError(f"--source={source} is not a directory; give the one that holds the files of {name}")
    images, captions, names, problems = Images(root), {}, {}, []
    official: dict[str, list[int]] = {}
    for split, path in annotation_files(root, YEARS[name]).items():
        own, own_names, own_problems = read_captions(path, images)
        captions |= own
        names |= own_names
        problems += own_problems
        official[split] = list(own)
    splits = official
    if name == "coco_captions":
        splits, own_problems = karpathy_splits(root, captions)
        problems += own_problems
    for image, count in Counter(i for ids in splits.values() for i in ids).items():
        if count > 1:
            raise UserError(f"image {image} is in {count} places of the splits; mend {KARPATHY}")

    def item(image: int) -> Item:
        file, place = images.find(names[image], image)
        return Item(file, place, 0, (image, captions[image]))

    items = {split: [item(image) for image in ids] for split, ids in splits.items()}
    notes = list(check_counts(items, COUNTS[name], partial))
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "file_name": tfds.features.Text(),
        "image/id": np.int64,
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
    }

    def fields(item: Item) -> dict[str, Any]:
        image, texts = item.extra
        return {"image/id": image, "captions": [{"id": i, "text": text} for i, text in texts]}

    return Collection("1.0.0", items, features, fields, notes=notes, problems=problems)
