"""The digits, the transforms, and the promises of the loader."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from lookupjax.data.config import default_data_config
from lookupjax.data.loader import EvalBatches, stack, train_iterator
from lookupjax.data.sources import dataset_info, open_source, prepare
from lookupjax.data.transforms import (
    Normalize,
    RandomAffine,
    apply,
    build_transforms,
    decode_image,
    read_image,
)
from lookupjax.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data"))
    prepare("digits", path)
    return path


@pytest.fixture
def config(directory):
    config = default_data_config()
    config.update(dict(dir=directory, channels=1))
    config.train_transforms = (
        dict(name="random_affine", degrees=20.0, translate=0.1),
        dict(name="normalize"),
    )
    return config


def test_digits_are_the_real_ones_in_a_fixed_stratified_split(directory):
    info = dataset_info("digits", directory)
    assert info.num_classes == 10 and info.splits == {"train": 1437, "test": 360}
    test = open_source("digits", "test", directory)
    labels = np.bincount([test[i]["label"] for i in range(360)])
    assert labels.min() >= 34 and labels.max() <= 37
    from sklearn.datasets import load_digits

    known = {np.round(x * 255 / 16).astype(np.uint8).tobytes() for x in load_digits().images}
    assert all(decode_image(test[i]["image"], 1).tobytes() in known for i in range(50))


def test_tensorflow_is_never_imported(tmp_path):
    code = (
        "import sys; from lookupjax.data.sources import open_source; import lookupjax.train;"
        f"open_source('digits', 'train', {str(tmp_path)!r})[0]; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_batches_do_not_depend_on_the_number_of_processes(config):
    whole = take(train_iterator(config, 8, seed=3), 3)
    for count in (2, 4):
        parts = [
            take(train_iterator(config, 8, 3, process_index=i, process_count=count), 3) for i in range(count)
        ]
        for step, batch in enumerate(whole):
            for key in batch:
                joined = np.concatenate([part[step][key] for part in parts])
                np.testing.assert_array_equal(joined, batch[key])


def test_an_iterator_goes_on_where_its_state_says(config):
    iterator = train_iterator(config, 16, seed=0)
    take(iterator, 5)
    position = iterator.get_state()
    expected = take(iterator, 3)
    other = train_iterator(config, 16, seed=0)
    other.set_state(position)
    for a, b in zip(expected, take(other, 3)):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_threads_and_cache_change_nothing_but_the_seed_does(config):
    expected = take(train_iterator(config, 16, seed=0), 2)
    config.threads, config.cache = 1, True
    for a, b in zip(expected, take(train_iterator(config, 16, seed=0), 2)):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert not np.array_equal(next(train_iterator(config, 16, seed=1))["label"], expected[0]["label"])


def test_an_epoch_shows_every_example_once(config):
    config.train_transforms = (dict(name="normalize"),)
    batches = take(train_iterator(config, 1437, seed=0), 2)
    for batch in batches:
        assert len({image.tobytes() for image in batch["image"]}) > 1400
    assert not np.array_equal(batches[0]["label"], batches[1]["label"])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_counts_every_example_once(config, count):
    parts = [
        list(EvalBatches(config, "test", 100, process_index=i, process_count=count)) for i in range(count)
    ]
    assert {len(part) for part in parts} == {4}
    assert sum(batch["mask"].sum() for part in parts for batch in part) == 360
    real = np.concatenate([b["label"][b["mask"] > 0] for group in zip(*parts) for b in group])
    source = open_source("digits", "test", config.dir)
    np.testing.assert_array_equal(real, [source[i]["label"] for i in range(360)])


def test_transforms():
    image = np.full((8, 8, 1), 255, np.uint8)
    assert Normalize()(image).min() == 1.0 and Normalize()(image * 0).max() == -1.0
    same = RandomAffine()(image, np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    resized = apply(build_transforms([dict(name="resize", size=(4, 6))]), image)
    assert resized.shape == (4, 6, 1) and (resized == 255).all()
    flip = build_transforms([dict(name="random_flip")])
    ramp = np.arange(8, dtype=np.uint8)[None, :, None].repeat(8, 0)
    flipped = [apply(flip, ramp, np.random.default_rng(i))[0, 0, 0] == 7 for i in range(200)]
    assert 70 < sum(flipped) < 130


def test_user_errors(config, directory, tmp_path):
    with pytest.raises(UserError, match="did you mean 'normalize'"):
        build_transforms([dict(name="normalise")])
    with pytest.raises(UserError, match=r"no argument 'degree' .did you mean 'degrees'"):
        build_transforms([dict(name="random_affine", degree=3)])
    with pytest.raises(UserError, match=r"has no split 'tset' .did you mean 'test'"):
        open_source("digits", "tset", directory)
    with pytest.raises(UserError, match="there is no dataset 'imagnet'"):
        open_source("imagnet", "train", directory)
    with pytest.raises(UserError, match="cannot be split over 3 processes"):
        train_iterator(config, 8, 0, process_count=3)
    with pytest.raises(UserError, match="different sizes"):
        stack([{"image": np.zeros((2, 2, 1))}, {"image": np.zeros((3, 2, 1))}])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write digits"):
        prepare("digits", str(tmp_path / "file" / "below"))
    for name, content in (("empty.png", b""), ("text.png", b"no image")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not an image"):
            read_image(tmp_path / name, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_user_images_of_any_kind(tmp_path, channels):
    rgba = np.random.default_rng(0).integers(0, 255, (5, 6, 4), np.uint8)
    for name, image in (("rgba.png", rgba), ("grey.jpg", rgba[..., 0]), ("colour.jpg", rgba[..., :3])):
        cv2.imwrite(str(tmp_path / name), image)
        assert read_image(tmp_path / name, channels).shape == (5, 6, channels)
