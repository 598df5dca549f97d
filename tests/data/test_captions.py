"""Captions: COCO's files, TFDS's copy, the tokenizer, scenes of digits, and what the loader makes of them."""

import io
from collections import Counter
from pathlib import Path

import coco_miniature
import numpy as np
import pytest
import tensorflow_datasets as tfds
from miniature import jpeg

from lookupjax.data.builders.captioned_digits import CLASSES, Scene, Thing, draw_scene, paint
from lookupjax.data.config import default_data_config
from lookupjax.data.loader import EvalBatches, train_iterator
from lookupjax.data.prepare import main
from lookupjax.data.sources import dataset_info, open_source
from lookupjax.data.tokenizer import (
    Captions,
    Tokenizer,
    example_captions,
    load_tokenizer,
    make_tokenizer,
    train_tokenizer,
)
from lookupjax.errors import UserError


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    coco_miniature.make(root)
    return root


@pytest.fixture(scope="session")
def prepared(mini, tmp_path_factory) -> Path:
    """A data directory with coco_captions from the faulty miniature."""
    directory = tmp_path_factory.mktemp("data")
    main(
        ["coco_captions", f"--source={mini / '2014'}", f"--data_dir={directory}", "--partial", "--threads=1"]
    )
    return directory


def contents(directory: Path, split: str, name: str = "coco_captions") -> dict[int, list[str]]:
    source = open_source(name, split, str(directory))
    return {int(e["image/id"]): example_captions(e) for e in (source[i] for i in range(len(source)))}


def test_faults_are_reported_line_by_line_and_the_rest_goes_on(mini, tmp_path, capsys):
    main(["coco_captions", f"--source={mini / '2014'}", f"--data_dir={tmp_path}", "--partial", "--threads=1"])
    said = capsys.readouterr().out
    for line in (
        "captions_train2014.json: image 8: there is no file COCO_train2014_000000000008.jpg; left out",
        "captions_train2014.json: annotation 1 (id 10): the caption is empty; left out",
        "captions_train2014.json: annotation 2 (id 20): not ASCII, kept as it is: Ein grünes Bild, très joli",
        "captions_train2014.json: annotation 20 (id 0): the id occurs before; left out",
        "captions_train2014.json: annotation 21 (id 5001): there is no image 999; left out",
        "captions_train2014.json: annotation 22 has no id, image_id or caption; left out",
        "captions_train2014.json: annotation 23 has no id, image_id or caption; left out",
        "captions_val2014.json: image 555: there is no file COCO_val2014_000000000555.jpg; left out",
        "captions_val2014.json: image 107 has no caption; left out",
        "dataset_coco.json: image 107 has no captions or no file; left out",
        "dataset_coco.json: image 8 has no captions or no file; left out",
        "accepted: test: 2 images, 5,000 in the official set",
    ):
        assert line in said
    assert "annotation 2 (id 20): not ASCII" in (tmp_path / "coco_captions/1.0.0/problems.txt").read_text()
    assert dataset_info("coco_captions", str(tmp_path)).splits == {
        "train": 7,
        "restval": 2,
        "val": 2,
        "test": 2,
    }


def test_what_is_there(prepared):
    train = contents(prepared, "train")
    assert sorted(train) == [1, 2, 3, 4, 5, 6, 7]
    assert train[1] == ["A noisy green picture, number 1.", "Ein grünes Bild, très joli"]
    assert train[3] == [" ".join(text.split()) for text in coco_miniature.texts(3)]
    source = open_source("coco_captions", "train+restval", str(prepared))
    images = {int(e["image/id"]): e["image"] for e in (source[i] for i in range(len(source)))}
    assert sorted(images) == [1, 2, 3, 4, 5, 6, 7, 101, 102] and images[101] == jpeg(101 % 3, 1010)


def test_other_layouts_and_what_is_missing(mini, tmp_path):
    main(["coco_captions_2017", f"--source={mini / '2017'}", f"--data_dir={tmp_path}", "--partial"])
    assert sorted(contents(tmp_path, "val", "coco_captions_2017")) == list(coco_miniature.VALIDATION)
    for name, source, complaint in (
        ("coco_captions", "2017", "has no dataset_coco.json"),
        ("coco_captions_2014", "2017", "captions_train2014.json and captions_val2014.json"),
        ("coco_captions_2017", "2017/train2017", "has no captions_train2017.json"),
    ):
        with pytest.raises(UserError, match=complaint):
            main([name, f"--source={mini / source}", f"--data_dir={tmp_path / 'other'}", "--partial"])
    with pytest.raises(UserError, match="accept it with --partial"):
        main(["coco_captions", f"--source={mini / '2014'}", f"--data_dir={tmp_path / 'other'}"])


class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    """Stands for TFDS's own copy: its features, without its downloads."""

    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        box = {"area": np.int64, "bbox": tfds.features.BBoxFeature(), "id": np.int64, "is_crowd": np.bool_}
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(box | {"label": tfds.features.ClassLabel(num_classes=80)}),
            "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(6))}

    def _generate_examples(self, images):
        box = dict(area=1, bbox=tfds.features.BBox(0.0, 0.0, 1.0, 1.0), id=1, is_crowd=False, label=3)
        for i in images:
            texts = [{"text": text, "id": n} for n, text in enumerate(coco_miniature.texts(i))]
            image = io.BytesIO(jpeg(i % 3, 10 * i))
            yield (
                i,
                {
                    "image": image,
                    "image/filename": f"{i}.jpg",
                    "image/id": i,
                    "objects": [box] * i,
                    "captions": texts,
                },
            )


def data_config(directory: Path, tokenizer: Path, **changes):
    config = default_data_config()
    captions = dict(name="captions", length=14, tokenizer=str(tokenizer))
    resize = dict(name="resize", size=(8, 8))
    config.update(
        dict(name="coco_captions", dir=str(directory), threads=1, tokenizer=dict(size=60))
        | dict(train_transforms=(resize, captions), eval_transforms=(resize, captions))
        | changes
    )
    return config


def test_tfds_copy_and_the_captions_of_an_epoch(tmp_path):
    """Every visit draws a caption; the same seed draws the same ones."""
    CocoCaptions(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = data_config(tmp_path, tmp_path / "t.model")
    make_tokenizer(config, tmp_path / "t.model")
    tokenizer = load_tokenizer(str(tmp_path / "t.model"))
    drawn = [Counter() for _ in range(6)]
    batches = [batch for _, batch in zip(range(30), train_iterator(config, 6, seed=0))]
    again = [batch for _, batch in zip(range(30), train_iterator(config, 6, seed=0))]
    for one, other in zip(batches, again):
        np.testing.assert_array_equal(one["caption"], other["caption"])
        assert one["caption"].dtype == np.int32 and "objects" not in one
        for image, caption in zip(one["image/id"], one["caption"]):
            drawn[image][tokenizer.decode(caption)] += 1
    for image, counts in enumerate(drawn):
        assert len(counts) == len(coco_miniature.texts(image)) and min(counts.values()) >= 4
    batch = EvalBatches(config, "train", 6).batch(0)  # the first caption there
    for image, caption in zip(batch["image/id"], batch["caption"]):
        first = tokenizer.decode(caption)
        assert first.startswith("a noisy") and coco_miniature.COLOURS[image % 3] in first


def test_tokens_of_a_file_stand_in_place_of_images(prepared, tmp_path):
    config = data_config(prepared, tmp_path / "t.model")
    make_tokenizer(config, tmp_path / "t.model")
    rows = np.arange(7 * 2 * 3, dtype=np.float32).reshape(7, 2, 3)
    rows[4] = np.nan  # a corrupt image
    np.save(tmp_path / "rows.npy", rows)
    config.max_corrupt = 0.5
    batch = next(train_iterator(config, 7, seed=1, tokens=str(tmp_path / "rows.npy")))
    source = open_source("coco_captions", "train", str(prepared))
    ids = [int(source[i]["image/id"]) for i in range(7)]
    assert "image" not in batch and batch["tokens"].shape == (7, 2, 3)
    for image, tokens in zip(batch["image/id"], batch["tokens"]):
        np.testing.assert_array_equal(tokens, rows[ids.index(image)])
    assert sorted(batch["image/id"]) == sorted([i for i in ids if i != ids[4]] + [ids[5]])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokenizer(prepared, tmp_path, kind):
    texts = Captions(open_source("coco_captions", "train", str(prepared)))
    model = train_tokenizer(texts, kind, 70)
    assert model == train_tokenizer(texts, kind, 70)
    tokenizer = Tokenizer(model)
    row = tokenizer.encode("A noisy  RED picture", 24)
    assert row[0] == tokenizer.start == 1 and tokenizer.end == 2 and tokenizer.pad == 0
    assert tokenizer.decode(row) == "a noisy red picture"
    short = tokenizer.encode("a noisy red picture, number 3", 6)
    assert short[-1] == tokenizer.end and "a noisy red picture".startswith(tokenizer.decode(short)[:6])
    with pytest.raises(UserError, match="could be trained"):
        train_tokenizer(texts, kind, 5)


def test_a_given_tokenizer_is_copied_and_a_wrong_one_refused(prepared, tmp_path):
    model = train_tokenizer(Captions(open_source("coco_captions", "val", str(prepared))), "bpe", 50)
    (tmp_path / "given.model").write_bytes(model)
    config = data_config(prepared, tmp_path / "t.model")
    config.tokenizer.path = str(tmp_path / "given.model")
    make_tokenizer(config, tmp_path / "t.model")
    assert (tmp_path / "t.model").read_bytes() == model
    (tmp_path / "bad.model").write_text("no model")
    for path, complaint in (
        (tmp_path / "bad.model", "no sentencepiece model"),
        ("nowhere", "cannot be read"),
    ):
        config.tokenizer.path = str(path)
        with pytest.raises(UserError, match=complaint):
            make_tokenizer(config, tmp_path / "other.model")


def test_scenes_are_what_their_captions_say():
    random = np.random.default_rng(0)
    bar = np.zeros((8, 8))
    bar[:, 3:5] = 16
    for layout in (0, 1):
        scene = Scene(layout, Thing(1, 0, 7), Thing(0, 2, 3))
        pixels = paint(scene, [bar, bar], random).astype(int)
        red = np.argwhere(pixels[..., 0] - pixels[..., 2] > 80)
        blue = np.argwhere(pixels[..., 2] - pixels[..., 0] > 80)
        assert red[:, layout].max() < blue[:, layout].min()  # above, left of
        assert np.ptp(red[:, 0]) > np.ptp(blue[:, 0]) + 3  # large, small
    assert scene.captions() == (
        "a large red 7 left of a small blue 3",
        "a small blue 3 right of a large red 7",
    )
    scenes = [[draw_scene(random, held_out) for _ in range(200)] for held_out in (False, True)]
    assert not set(scenes[0]) & set(scenes[1])
    classes = {c for s in scenes[0] for c in s.classes()}
    assert classes <= set(range(CLASSES)) and len(classes) > CLASSES / 2
    assert all(len(set(s.classes())) == 2 for s in scenes[0])
