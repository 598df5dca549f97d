"""Preparation from the official layouts: what is in the result, kills, wrong sources. All on a miniature."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import miniature
import numpy as np
import pytest
from etils import epath
from PIL import Image

from lookupjax.data import imagenet, shards
from lookupjax.data.config import default_data_config
from lookupjax.data.loader import EvalBatches, train_iterator
from lookupjax.data.prepare import main
from lookupjax.data.sources import dataset_info, open_source
from lookupjax.data.transforms import decode_image
from lookupjax.errors import UserError

SMALL = ("--partial", "--shard_examples=4", "--threads=2")


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("miniature")
    miniature.make(root)
    return root


@pytest.fixture(scope="session")
def prepared(mini, tmp_path_factory) -> Path:
    """A data directory with imagenet2012 from the official tars."""
    directory = tmp_path_factory.mktemp("prepared")
    main(["imagenet2012", f"--source={mini / 'tars'}", f"--data_dir={directory}", *SMALL])
    return directory


def contents(directory: Path, split: str, name: str = "imagenet2012") -> list[tuple]:
    source = open_source(name, split, str(directory))
    return [
        (e["file_name"].decode(), e["image"], e["label"]) for e in (source[i] for i in range(len(source)))
    ]


def test_the_original_bytes_and_labels_are_there(prepared, capsys):
    info = dataset_info("imagenet2012", str(prepared))
    assert info.num_classes == 1000 and info.splits == {"train": 22, "validation": 9}
    wnids = imagenet.wnids_1k()
    assert wnids == sorted(wnids) and len(set(wnids)) == 1000
    train = contents(prepared, "train")
    assert [name for name, _, _ in train] != sorted(name for name, _, _ in train)  # shuffled
    expected = {
        f"{wnid}/{wnid}_{n}.JPEG": (miniature.train_image(label, n), wnids.index(wnid))
        for label, wnid in enumerate(miniature.WNIDS)
        for n in range(miniature.TRAIN)
    }
    left_out = ["n01440764/n01440764_4.JPEG", "n01440764/n01440764_5.JPEG"]
    for name in left_out:
        del expected[name]
    assert {name: (image, label) for name, image, label in train} == expected
    lines = (prepared / "imagenet2012/5.1.0/unreadable.txt").read_text().splitlines()
    assert lines == [f"{name}: not an image that can be decoded" for name in left_out]
    validation = {name: label for name, _, label in contents(prepared, "validation")}
    assert all(
        validation[f"ILSVRC2012_val_{i + 1:08d}.JPEG"] == wnids.index(miniature.WNIDS[i % 3])
        for i in range(9)
    )


def test_grey_cmyk_and_png_become_rgb_as_pillow_decodes_them(prepared):
    modes = set()
    for _, image, _ in contents(prepared, "train"):
        picture = Image.open(io.BytesIO(image))
        modes.add((picture.format, picture.mode))
        decoded, expected = decode_image(image, 3).astype(int), np.asarray(picture.convert("RGB")).astype(int)
        assert np.abs(decoded - expected).mean() < 1.5
    assert modes == {("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")}


def test_a_jpeg_is_decoded_as_opencv_does_and_not_turned():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    for options in ({}, {"exif": turned}):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", **options)
        encoded = np.frombuffer(file.getvalue(), np.uint8)
        expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        assert expected.shape == (24, 40, 3)
        np.testing.assert_array_equal(decode_image(file.getvalue(), 3), expected)
        assert decode_image(file.getvalue(), 1).shape == (24, 40, 1)


def test_a_tree_gives_the_same_dataset(mini, prepared, tmp_path):
    main(["imagenet2012", f"--source={mini / 'tree'}", f"--data_dir={tmp_path}", *SMALL])
    for split in ("train", "validation"):
        ours, theirs = contents(tmp_path, split), contents(prepared, split)
        assert {(n.split("/")[-1], image, label) for n, image, label in ours} == {
            (n.split("/")[-1], image, label) for n, image, label in theirs
        }


def test_readable_names_come_from_a_file(mini, tmp_path):
    words = tmp_path / "synsets.txt"
    words.write_text("".join(f"{wnid} word {i}\n" for i, wnid in enumerate(imagenet.wnids_1k())))
    source = f"--source={mini / 'tree'}"
    main(["imagenet2012", source, f"--data_dir={tmp_path}", *SMALL, f"--synsets={words}"])
    assert dataset_info("imagenet2012", str(tmp_path)).words[1] == "word 1"
    words.write_text("n01440764 tench\n")
    with pytest.raises(UserError, match="no words for n01443537 and 998 other"):
        imagenet.collect("imagenet2012", str(mini / "tree"), partial=True, synsets=str(words))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("moment", [0, 1, 5, 6, 11, 12, 18, 19])
def test_killed_at_any_write_it_goes_on(mini, prepared, tmp_path, monkeypatch, moment):
    """Every file is published by one os.replace: dying before the n-th loses nothing of those before it."""
    source, replace, count = mini / "tars", shards.os.replace, [0]
    arguments = ["imagenet2012", f"--source={source}", f"--data_dir={tmp_path}", *SMALL[:2], "--threads=1"]

    def dying(a, b):
        count[0] += 1
        if count[0] > moment:
            raise Killed
        replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "replace", dying)
        with pytest.raises(Killed):
            main(arguments)
    with pytest.raises(UserError, match="is not finished; go on with"):
        dataset_info("imagenet2012", str(tmp_path))
    main(arguments)
    for split in ("train", "validation"):
        assert contents(tmp_path, split) == contents(prepared, split)
    assert not list((tmp_path / "imagenet2012").glob("*.incomplete"))


def test_sigkill_and_resume(mini, prepared, tmp_path, capsys):
    """A real process, killed when its first shard is there; one image per shard makes that early."""
    arguments = ["imagenet2012", f"--source={mini / 'tars'}", f"--data_dir={tmp_path}", "--partial"]
    arguments += ["--shard_examples=1", "--threads=1"]
    process = subprocess.Popen([sys.executable, "-m", "lookupjax.data.prepare", *arguments])
    notes = tmp_path / "imagenet2012/5.1.0.incomplete/notes"
    while process.poll() is None and not list(notes.glob("*.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    main(arguments)
    assert "going on: " in capsys.readouterr().out
    assert sorted(contents(tmp_path, "train")) == sorted(contents(prepared, "train"))


def test_another_source_does_not_continue_a_beginning(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.Writer, "_finish", lambda *_: None)
    main(["imagenet2012", f"--source={mini / 'tars'}", f"--data_dir={tmp_path}", *SMALL])
    with pytest.raises(UserError, match="from other files"):
        main(["imagenet2012", f"--source={mini / 'tree'}", f"--data_dir={tmp_path}", *SMALL])


@pytest.mark.parametrize(
    "name, splits, classes",
    [
        ("imagenet_a", {"test": 6}, 3),
        ("imagenet_r", {"test": 6}, 3),
        ("imagenet_o", {"test": 6}, 3),
        ("imagenet_sketch", {"test": 6}, 1000),
        ("imagenet_v2", {"test": 6}, 1000),
        ("imagenet_c", {"gaussian_noise_1": 6, "gaussian_noise_5": 6}, 1000),
        ("imagenet21k", {"train": 3}, 2),
    ],
)
def test_other_sets(mini, tmp_path, name, splits, classes):
    main([name, f"--source={mini / 'others' / name}", f"--data_dir={tmp_path}", "--partial"])
    info = dataset_info(name, str(tmp_path))
    assert info.splits == splits and info.num_classes == classes
    labels = [label for _, _, label in contents(tmp_path, next(iter(splits)), name)]
    if name == "imagenet_v2":
        assert sorted(labels) == [0, 0, 1, 1, 999, 999]
    elif name in ("imagenet_a", "imagenet_r"):
        assert info.class_names == miniature.WNIDS and sorted(labels) == [0, 0, 1, 1, 2, 2]
    elif classes == 1000:
        assert sorted(set(labels)) == [imagenet.wnids_1k().index(wnid) for wnid in miniature.WNIDS]


def test_reassessed_labels(mini, tmp_path):
    main(["imagenet2012_real", f"--source={mini / 'tars'}", f"--data_dir={tmp_path}", "--partial"])
    source = open_source("imagenet2012_real", "validation", str(tmp_path))
    rows = {e["file_name"].decode(): list(e["real_label"]) for e in (source[i] for i in range(9))}
    expected = json.loads((mini / "tars/real.json").read_text())
    assert rows == {f"ILSVRC2012_val_{i + 1:08d}.JPEG": row for i, row in enumerate(expected)}


def test_wrong_sources_say_what_is_wrong(mini, tmp_path):
    def collect(name, source, partial=True):
        return imagenet.collect(name, str(source), partial=partial)

    with pytest.raises(UserError, match="24 images, 1,281,167 in the official set; complete the source"):
        collect("imagenet2012", mini / "tars", partial=False)
    with pytest.raises(UserError, match=r"no ILSVRC2012_img_train.tar or train/; it holds"):
        collect("imagenet2012", mini / "others", partial=False)
    with pytest.raises(UserError, match="is not a directory"):
        collect("imagenet2012", mini / "nowhere")
    with pytest.raises(UserError, match=r"no real\.json"):
        collect("imagenet2012_real", mini / "tree")
    whole = (mini / "tars/ILSVRC2012_img_train.tar").read_bytes()
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is not a complete tar archive: .*fetch it again"):
        collect("imagenet2012", tmp_path)
    image = miniature.jpeg(0, 0)
    miniature.write(
        tmp_path, {"a/train/n00000001/x.jpg": image, "b/1000/x.jpg": image, "c/fog/6/n1/x.jpg": image}
    )
    with pytest.raises(UserError, match=r"'n00000001/x\.jpg' lies in 'n00000001', none of the 1000 classes"):
        collect("imagenet2012", tmp_path / "a")
    with pytest.raises(UserError, match="lies in '1000', none of the 1000 classes"):
        collect("imagenet_v2", tmp_path / "b")
    with pytest.raises(UserError, match="ImageNet-C is CORRUPTION/SEVERITY"):
        collect("imagenet_c", tmp_path / "c")
    kit = {Path(k).name: v for k, v in miniature.devkit().items()}
    kit[imagenet.GROUND_TRUTH] = b"1001\n" * 9
    miniature.write(tmp_path / "d", {f"{imagenet.DEVKIT}/data/{k}": v for k, v in kit.items()})
    miniature.write(tmp_path / "d", {"val/ILSVRC2012_val_00000001.JPEG": image})
    with pytest.raises(UserError, match="label 1001 is out of range"):
        collect("imagenet2012", tmp_path / "d")


def test_a_damaged_source_does_not_become_a_dataset(tmp_path):
    miniature.write(tmp_path / "source", {f"n00000001/{i}.jpg": b"nothing" for i in range(11)})
    with pytest.raises(UserError, match="11 of 11 images cannot be read"):
        main(["imagenet21k", f"--source={tmp_path / 'source'}", f"--data_dir={tmp_path}"])
    with pytest.raises(UserError, match="not finished"):
        open_source("imagenet21k", "train", str(tmp_path))


@pytest.fixture
def config(prepared):
    config = default_data_config()
    config.update(dict(name="imagenet2012", dir=str(prepared), eval_split="validation", threads=1))
    config.train_transforms = (
        dict(name="random_resized_crop", size=(24, 24)),
        dict(name="random_flip"),
        dict(name="rand_augment", operations="tf"),
        dict(name="normalize"),
        dict(name="random_erasing"),
    )
    config.eval_transforms = (dict(name="centre_crop", size=(24, 24)), dict(name="normalize"))
    return config


def test_the_same_bytes_on_one_and_four_threads_and_in_processes(config):
    """Two processes here: starting one costs four seconds, most of it Grain importing JAX."""
    expected = [next(iterator) for iterator in [train_iterator(config, 8, 5)] for _ in range(5)]
    config.threads = 4
    iterator = train_iterator(config, 8, 5)
    threads = [next(iterator) for _ in range(5)]
    config.workers, config.threads = 2, 1
    iterator = train_iterator(config, 8, 5)
    iterator.set_state({"next_index": 2})
    processes = [next(iterator) for _ in range(3)]
    assert iterator.get_state() == {"next_index": 5}
    for i, batch in enumerate(expected):
        for key in batch:
            np.testing.assert_array_equal(batch[key], threads[i][key])
            if i >= 2:
                np.testing.assert_array_equal(batch[key], processes[i - 2][key])


def test_corrupt_records_are_replaced_the_same_way_always(config, monkeypatch, caplog):
    """Record 3 is damaged after preparation: its place is taken by record 4."""
    broken = open_source("imagenet2012", "train", config.dir)

    class Source:
        def __len__(self):
            return len(broken)

        def __getitem__(self, index):
            return broken[index] | ({"image": b"damaged"} if index == 3 else {})

    monkeypatch.setattr("lookupjax.data.loader.open_source", lambda *_: Source())
    with pytest.raises(UserError, match=r"1 of 22 records are corrupt.*max_corrupt=0.01"):
        next(train_iterator(config, 22, 0))
    config.max_corrupt = 0.1
    config.train_transforms = config.eval_transforms
    batches = [next(train_iterator(config, 22, 0)) for _ in range(2)]
    np.testing.assert_array_equal(batches[0]["image"], batches[1]["image"])
    assert len({image.tobytes() for image in batches[0]["image"]}) == 21
    key = broken[3]["file_name"].decode()
    assert f"record {key} is corrupt and left out" in caplog.text
    evaluated = list(EvalBatches(config, "train", 11))
    assert sum(b["mask"].sum() for b in evaluated) == 21 and evaluated[0]["mask"][3] == 0


def test_remote_paths_go_through_epath(mini, tmp_path, monkeypatch):
    """A "remote" directory here is a local one behind the code path of gs://."""
    monkeypatch.setattr(shards, "_is_remote", lambda path: True)
    collection = imagenet.collect("imagenet_r", str(mini / "others/imagenet_r"), partial=True)
    shards.Writer("imagenet_r", collection, epath.Path(tmp_path), 4).write(1, lambda _: None)
    assert len(contents(tmp_path, "test", "imagenet_r")) == 6


def test_from_the_tars_to_a_trained_model(prepared, tmp_path, train):
    """The documented commands, on the miniature: its images at the model's size, three steps."""
    train(
        "--config=configs/imagenet/vit.py:B/16:smoke",
        *(f"--config.data.dir={prepared}", "--config.data.name=imagenet2012", f"--workdir={tmp_path}"),
        *("--config.data.eval_split=validation", "--config.steps=3", "--config.batch_size=4"),
        "--config.schedule.warmup_steps=1",
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[""]["examples"] == 9 and np.isfinite(results[""]["nll"])
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_classes"] == 1000


def test_pictures_without_labels_keep_their_sizes(tmp_path):
    for i, size in enumerate([(40, 32), (24, 36)]):
        (tmp_path / "hr").mkdir(exist_ok=True)
        Image.new("RGB", size, (10 * i, 0, 0)).save(tmp_path / "hr" / f"{i}.png")
    with pytest.raises(UserError, match="2 images, 5 in the official set"):
        main(["set5", f"--source={tmp_path / 'hr'}", f"--data_dir={tmp_path}"])
    main(["set5", f"--source={tmp_path / 'hr'}", f"--data_dir={tmp_path}", *SMALL])
    assert dataset_info("set5", str(tmp_path)).num_classes == 0
    config = default_data_config()
    config.update(name="set5", dir=str(tmp_path), eval_split="test")
    batches = list(EvalBatches(config, "test", 1))
    assert sorted(b["image"].shape for b in batches) == [(1, 32, 40, 3), (1, 36, 24, 3)]
    with pytest.raises(UserError, match="DIV2K_train_HR is not a directory"):
        main(["div2k", f"--source={tmp_path}", f"--data_dir={tmp_path}"])
