"""Plain folders and CSVs as datasets, and that one trains."""

import json

import cv2
import numpy as np
import pytest

from lookupjax.data.folder import read_folder
from lookupjax.data.sources import dataset_info, open_source
from lookupjax.errors import UserError


def write(path, shade=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((12, 9, 3), shade, np.uint8))


def test_a_tree_with_splits(tmp_path):
    for split, names in (("train", ("b", "a")), ("val", ("a", "b")), ("test", ("b",))):
        for name in names:
            write(tmp_path / split / name / "deep" / "1.JPG")
            (tmp_path / split / name / "notes.txt").write_text("no image")
    info = dataset_info("folder", str(tmp_path))
    assert info.class_names == ("a", "b") and info.splits == {"train": 2, "validation": 2, "test": 1}
    example = open_source("folder", "validation", str(tmp_path))[1]
    assert example["label"] == 1 and example["file_name"].endswith(b"val/b/deep/1.JPG")
    with pytest.raises(UserError, match="has no split 'eval'"):
        open_source("folder", "eval", str(tmp_path))


def test_without_splits_a_tenth_of_each_class_is_set_aside_and_stays_so(tmp_path):
    for i in range(60):
        write(tmp_path / "cat" / f"{i}.png")
        if i < 3:
            write(tmp_path / "dog" / f"{i}.png")
    before = read_folder(str(tmp_path)).splits
    assert 2 <= sum(label == 0 for _, label in before["validation"]) <= 12
    assert sum(label == 1 for _, label in before["validation"]) == 1
    assert not set(before["train"]) & set(before["validation"])
    for i in range(60, 90):
        write(tmp_path / "cat" / f"{i}.png")
    read_folder.cache_clear()
    after = read_folder(str(tmp_path)).splits
    assert set(before["validation"]) <= set(after["validation"])


def test_a_csv(tmp_path):
    for name in "abcd":
        write(tmp_path / "x" / f"{name}.png")
    table = tmp_path / "labels.csv"
    table.write_text("Path, label, split\nx/a.png, dog, train\nx/b.png, cat,\nx/c.png, dog, val\n")
    folder = read_folder(str(table))
    assert folder.classes == ("cat", "dog")
    assert [path.name for path, _ in folder.splits["train"]] == ["a.png", "b.png"]
    assert folder.splits["validation"] == ((tmp_path / "x/c.png", 1),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("x/a.png,dog\n", 'its first line must name the columns "path,label"'),
        ("path,label\nx/none.png,dog\n", "line 2: there is no image"),
        ("path,label,split\nx/a.png,dog,extra\n", "line 2: split 'extra' is none of"),
        ("path,label\nx/a.png,dog\n", r"holds training images of 1 classes \(\['dog'\]\)"),
        ("path,label,split\nx/a.png,a,train\nx/a.png,b,train\nx/a.png,c,val\n", "validation has images of"),
    ],
)
def test_errors_of_a_csv(tmp_path, text, message):
    write(tmp_path / "x/a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_folder(str(tmp_path / "labels.csv"))


def test_no_folder_is_an_error(tmp_path):
    for directory in ("", str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="there is no folder or CSV"):
            read_folder(directory)


def test_the_config_trains_on_a_folder_and_learns_it(tmp_path, root, train):
    for i in range(12):
        write(tmp_path / "photos/dark" / f"{i}.png", 3 * i)
        write(tmp_path / "photos/light" / f"{i}.png", 255 - 3 * i)
    arguments = [
        f"--config={root}/configs/finetune.py:vit_mu,scratch",
        f"--config.data.dir={tmp_path / 'photos'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.steps=30",
        "--config.batch_size=8",
        "--config.eval_every=0",
        "--config.schedule.warmup_steps=2",
    ]
    train(*arguments)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results[""]["accuracy"] == 1.0 and results[""]["examples"] >= 2
