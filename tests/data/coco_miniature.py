"""Makes a miniature of COCO's captions in the official layouts, of 2014 and of 2017, faults included.

python tests/data/coco_miniature.py DIR
"""

import json
import shutil
import sys
from pathlib import Path

from miniature import jpeg, write

TRAIN, VALIDATION = range(1, 9), range(101, 108)  # image ids; 8 of train and 107 have faults
COLOURS = ("red", "green", "blue")
SPLITS = {101: "restval", 102: "restval", 103: "val", 104: "val", 105: "test", 106: "test", 107: "test"}


def name(split: str, image: int, year: int) -> str:
    return f"COCO_{split}2014_{image:012d}.jpg" if year == 2014 else f"{image:012d}.jpg"


def texts(image: int) -> list[str]:
    """Two or three captions of an image."""
    colour = COLOURS[image % 3]
    lines = [f"A noisy {colour} picture, number {image}.", f"There's a lot of {colour} in this image"]
    return lines + ([f"The picture is {colour}\n"] if image % 2 else [])


def captions(split: str, images: range, year: int) -> dict:
    """An official caption file."""
    listed = [{"id": i, "file_name": name(split, i, year), "height": 60, "width": 60} for i in images]
    lines = [(i, text) for i in images for text in texts(i)]
    annotations = [{"image_id": i, "id": 10 * n, "caption": text} for n, (i, text) in enumerate(lines)]
    return {"info": {}, "licenses": [], "images": listed, "annotations": annotations}


def faults(train: dict, validation: dict) -> None:
    """A missing image, an empty caption, text that is not ASCII, a duplicate id, broken lines."""
    train["annotations"][1]["caption"] = "  "
    train["annotations"][2]["caption"] = "Ein grünes Bild, très joli"
    train["annotations"].append({"image_id": 3, "id": 0, "caption": "The id of the first one"})
    train["annotations"].append({"image_id": 999, "id": 5001, "caption": "An image that is not listed"})
    train["annotations"].append({"image_id": 3, "caption": "no id"})
    train["annotations"].append("no annotation")
    validation["images"].append({"id": 555, "file_name": "COCO_val2014_000000000555.jpg"})
    validation["annotations"].append({"image_id": 555, "id": 5002, "caption": "Its file is missing"})
    validation["annotations"] = [a for a in validation["annotations"] if a["image_id"] != 107]


def make(root: Path) -> None:
    """Writes DIR/2014 (faulty, with Karpathy's splits) and DIR/2017 (whole)."""
    for year in (2014, 2017):
        train, validation = captions("train", TRAIN, year), captions("val", VALIDATION, year)
        files = {
            f"{split}{year}/{name(split, i, year)}": jpeg(i % 3, 10 * i)
            for split, images in (("train", TRAIN), ("val", VALIDATION))
            for i in images
            if year == 2017 or i != 8
        }
        if year == 2014:
            faults(train, validation)
            entries = [{"cocoid": i, "split": "train", "sentids": []} for i in TRAIN]
            entries += [{"cocoid": i, "split": split} for i, split in SPLITS.items()]
            files["dataset_coco.json"] = json.dumps({"images": entries, "dataset": "coco"}).encode()
        files[f"annotations/captions_train{year}.json"] = json.dumps(train).encode()
        files[f"annotations/captions_val{year}.json"] = json.dumps(validation).encode()
        write(root / str(year), files)


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    make(Path(sys.argv[1]))
    print(f"made {sys.argv[1]}: 2014, 2017")
