"""Transforms against their definitions; Pillow is the independent implementation of the operations."""

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps

from lookupjax.data import colour
from lookupjax.data.rand_augment import OPERATIONS, RandAugment, argument, operate
from lookupjax.data.resize import resize_image
from lookupjax.data.transforms import (
    CentreCrop,
    ColourJitter,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomQuarterTurn,
    RandomResizedCrop,
    ResizeShortSide,
    apply,
    apply_example,
    build_transforms,
)
from lookupjax.errors import UserError


def photo(height=60, width=80, channels=3, seed=0):
    """A smooth picture with edges and noise, uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 8, channels), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    image = np.clip(image.astype(int) + rng.integers(-12, 12, image.shape), 0, 255).astype(np.uint8)
    image[10:20, 30:50] = 40
    return image


AFFINE = {"shear_x": (1, 0.17, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.17, 1, 0)}
REFERENCE = {
    "identity": (0.0, lambda x: x),
    "autocontrast": (0.0, ImageOps.autocontrast),
    "equalize": (0.0, ImageOps.equalize),
    "invert": (0.0, ImageOps.invert),
    "posterize": (3.0, lambda x: ImageOps.posterize(x, 3)),
    "solarize": (100.0, lambda x: ImageOps.solarize(x, 100)),
    "solarize_add": (60.0, lambda x: x.point([min(255, i + 60) if i < 128 else i for i in range(256)] * 3)),
    "colour": (1.7, lambda x: ImageEnhance.Color(x).enhance(1.7)),
    "contrast": (0.4, lambda x: ImageEnhance.Contrast(x).enhance(0.4)),
    "brightness": (1.4, lambda x: ImageEnhance.Brightness(x).enhance(1.4)),
    "sharpness": (1.8, lambda x: ImageEnhance.Sharpness(x).enhance(1.8)),
    "rotate": (17.0, lambda x: x.rotate(17.0, fillcolor=(128, 128, 128))),
    "shear_x": (0.17, lambda x: x.transform(x.size, Pillow.AFFINE, AFFINE["shear_x"], fillcolor=(128,) * 3)),
    "shear_y": (0.17, lambda x: x.transform(x.size, Pillow.AFFINE, AFFINE["shear_y"], fillcolor=(128,) * 3)),
    "translate_x": (
        0.15,
        lambda x: x.transform(x.size, Pillow.AFFINE, (1, 0, 12, 0, 1, 0), fillcolor=(128,) * 3),
    ),
    "translate_y": (
        -0.2,
        lambda x: x.transform(x.size, Pillow.AFFINE, (1, 0, 0, 0, 1, -12), fillcolor=(128,) * 3),
    ),
}


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_operations_are_pillows(name):
    value, reference = REFERENCE[name]
    for seed in range(3):
        image = photo(seed=seed)
        ours = operate(image, name, value, (128,) * 3, cv2.INTER_NEAREST, np.random.default_rng(0)).astype(
            int
        )
        theirs = np.asarray(reference(Pillow.fromarray(image))).astype(int)
        off = np.abs(ours - theirs).max(-1)
        # geometry: a pixel whose centre falls between two others may go either way
        assert (off > 2).mean() <= (0.01 if name in ("rotate", "shear_x", "shear_y") else 0.0)
        assert (off > 1).mean() <= 0.01


def test_every_published_operation_is_checked():
    assert len(OPERATIONS["paper"]) == 14 and len(OPERATIONS["tf"]) == 16 and len(OPERATIONS["timm"]) == 15
    assert {name for names in OPERATIONS.values() for name in names} - {"cutout"} == set(REFERENCE)


def test_arguments_follow_the_published_table():
    full = {"rotate": 30, "shear_x": 0.3, "colour": 1.9, "posterize": 4, "solarize": 256, "solarize_add": 110}
    for name, value in full.items():
        assert argument(name, 1.0, 1, False) == pytest.approx(value)
    assert argument("rotate", 0.5, -1, False) == -15.0
    assert [argument("posterize", x, 1, True) for x in (0.0, 0.9, 1.0)] == [4, 1, 0]
    assert [argument("solarize", x, 1, True) for x in (0.0, 0.5, 1.0)] == [256, 128, 0]
    assert [argument("colour", 1.0, s, True) for s in (1, -1)] == pytest.approx([1.9, 0.1])


@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_draws_every_operation_and_keeps_the_shape(operations, channels, monkeypatch):
    seen = []
    monkeypatch.setattr("lookupjax.data.rand_augment.operate", lambda *a: (seen.append(a[1]), operate(*a))[1])
    image, transform = (
        photo(channels=channels),
        RandAugment(2, 9.0, operations, std=0.5, interpolation="random"),
    )
    for seed in range(150):
        out = transform(image, np.random.default_rng(seed))
        assert out.shape == image.shape and out.dtype == np.uint8
    counts = [seen.count(name) for name in OPERATIONS[operations]]
    assert sum(counts) == 300 and min(counts) >= 5 and max(counts) <= 45


def test_half_the_operations_are_left_out_at_probability_one_half(monkeypatch):
    count = []
    monkeypatch.setattr("lookupjax.data.rand_augment.operate", lambda image, *_: (count.append(1), image)[1])
    for seed in range(300):
        RandAugment(probability=0.5)(photo(), np.random.default_rng(seed))
    assert 250 < len(count) < 350


def test_crop_statistics():
    """Area shares uniform in [0.08, 1] and log ratios uniform, as far as the crop fits into the image."""
    random, crop = np.random.default_rng(0), RandomResizedCrop((8, 8))
    boxes = np.array([crop.box(400, 400, random) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (
        (top >= 0).all() and (left >= 0).all() and (top + height <= 400).all() and (left + width <= 400).all()
    )
    area, log_ratio = height * width / 160_000, np.log(width / height)
    assert area.min() >= 0.078 and area.max() <= 1.0 and np.abs(log_ratio).max() <= np.log(4 / 3) + 0.02
    # below area 3/4 every ratio fits, so the draws are uniform there
    small = area < 0.7
    quantiles = np.quantile(area[small], (0.25, 0.5, 0.75))
    np.testing.assert_allclose(quantiles, 0.08 + 0.62 * np.array([0.25, 0.5, 0.75]), atol=0.02)
    quantiles = np.quantile(log_ratio[small], (0.25, 0.5, 0.75))
    np.testing.assert_allclose(quantiles, np.log(4 / 3) * np.array([-0.5, 0.0, 0.5]), atol=0.02)
    places = top[small] / (400 - height[small])
    np.testing.assert_allclose(np.quantile(places, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.03)
    # ten tries fail in a ribbon: the largest centred crop of a ratio in range
    assert crop.box(100, 1000, random) == (0, 433, 100, 133)


def resize_matrix(n_in: int, n_out: int, bicubic: bool) -> np.ndarray:
    """The definition: kernel k((j - c_i) / s), c_i = (i + 0.5) r - 0.5, r = n_in / n_out, s = max(r, 1)."""
    ratio = n_in / n_out
    x = np.abs(np.arange(n_in)[None] - ((np.arange(n_out)[:, None] + 0.5) * ratio - 0.5)) / max(ratio, 1.0)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2  # Keys, a = -1/2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0)) if bicubic else np.maximum(0, 1 - x)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(23, 31), (90, 100), (20, 130)])
@pytest.mark.parametrize("channels", [1, 3])
def test_antialiased_resizing_is_the_definition(name, size, channels):
    image = photo(channels=channels)
    rows, columns = (resize_matrix(n, m, name == "bicubic") for n, m in zip(image.shape, size))
    exact = np.clip(np.einsum("oh,pw,hwc->opc", rows, columns, image), 0, 255)
    ours = resize_image(image, size, name)
    assert ours.shape == (*size, channels)
    assert np.abs(ours - exact).max() <= 2.5  # Pillow rounds between its two passes


@pytest.mark.parametrize("interpolation", ["auto", "bicubic"])
@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (32, 32)])
def test_centre_crop_is_resize_then_crop(interpolation, shape):
    image = photo(*shape)
    ours = CentreCrop((28, 28), 0.875, interpolation)(image)
    whole = ResizeShortSide(32, interpolation)(image)
    assert min(whole.shape[:2]) == 32
    top, left = round((whole.shape[0] - 28) / 2), round((whole.shape[1] - 28) / 2)
    off = np.abs(ours.astype(int) - whole[top : top + 28, left : left + 28])
    assert off.max() <= 1 and (off > 0).mean() < 0.02  # Pillow computes the window alone


def test_centre_crop_pads_small_images():
    out = CentreCrop((10, 6), None)(np.full((4, 8, 1), 7, np.uint8))
    assert out.shape == (10, 6, 1) and (out[3:7] == 7).all() and out[:3].max() == 0 and out[7:].max() == 0


def test_crops_and_turns_only_move_pixels():
    image = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    crops = {RandomCrop((7, 4))(image, np.random.default_rng(i)).tobytes() for i in range(60)}
    assert crops == {image[:, i : i + 4].tobytes() for i in range(6)}
    turns = {
        RandomQuarterTurn(flip=True)(image[:, :7], np.random.default_rng(i)).tobytes() for i in range(100)
    }
    assert len(turns) == 8
    with pytest.raises(UserError, match="has no window"):
        RandomCrop((8, 8))(image, np.random.default_rng(0))


def test_erasing():
    image, random = np.full((40, 40, 3), 9.0, np.float32), np.random.default_rng(0)
    shares = []
    for _ in range(400):
        out = RandomErasing()(image, random)
        changed = (out != 9.0).any(-1)
        shares.append(changed.mean())
        if shares[-1]:
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            assert changed.sum() == len(rows) * len(columns)
    shares = np.array(shares)
    assert 0.19 < (shares > 0).mean() < 0.31 and shares[shares > 0].min() >= 0.015 and shares.max() <= 0.35
    assert RandomErasing(1.0, fill="zero")(image, random).min() == 0.0
    with pytest.raises(UserError, match="after normalize"):
        RandomErasing()(photo(), random)


def test_normalize_is_the_formula():
    image, mean, std = photo(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (image / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(Normalize(mean, std)(image), expected, atol=1e-5)
    assert Normalize()(image[..., :1]).shape == (60, 80, 1)


def test_colour_jitter_stays_in_range_and_turns_hue():
    image = np.full((4, 4, 3), 100, np.uint8)
    values = [ColourJitter(0.4, 0.0, 0.0)(image, np.random.default_rng(i)).mean() for i in range(200)]
    assert 59 <= min(values) < 65 and 135 < max(values) <= 140
    red = np.zeros((2, 2, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    assert colour.hue(red, 1 / 3)[0, 0].argmax() == 1 and colour.hue(red, 2 / 3)[0, 0].argmax() == 2
    grey = photo(channels=1)
    assert ColourJitter()(grey, np.random.default_rng(0)).shape == grey.shape


class CountWords:
    """A transform of whole examples, as a task brings its own."""


def test_whole_examples_and_transforms_from_elsewhere(monkeypatch):
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Words:
        key: str = "text"
        whole = True

        def __call__(self, example):
            return example | {"words": len(example[self.key].split())}

    monkeypatch.setattr(f"{__name__}.CountWords", Words)
    steps = build_transforms([dict(name="resize", size=(4, 4)), dict(name=f"{__name__}:CountWords")])
    example = apply_example(steps, {"image": photo(), "text": b"a b c"})
    assert example["words"] == 3 and example["image"].shape == (4, 4, 3)
    assert apply(steps, photo()).shape == (4, 4, 3)
    with pytest.raises(UserError, match=r"interpolation='bicubi' is unknown .did you mean 'bicubic'"):
        build_transforms([dict(name="resize", size=(4, 4), interpolation="bicubi")])
    with pytest.raises(UserError, match="no_such_module"):
        build_transforms([dict(name="no_such_module:Thing")])


def test_quarter_turns_are_uniform_and_keep_the_canvas():
    turn = build_transforms([dict(name="random_quarter_turn")])[0]
    square = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    random = np.random.default_rng(0)
    results = [turn(square, random) for _ in range(4000)]
    counts = [sum(np.array_equal(r, np.rot90(square, k)) for r in results) for k in range(4)]
    assert sum(counts) == 4000 and min(counts) > 900

    wide = np.full((256, 300, 3), 255, np.uint8)
    black = {round(float((turn(wide, random) == 0).mean()), 3) for _ in range(20)}
    assert black == {0.0, 0.147}  # a quarter turn of 300 x 256 leaves bars, half a turn none


def test_grey_keeps_three_equal_channels():
    grey = build_transforms([dict(name="random_grey", probability=1.0)])[0]
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    result = grey(image, np.random.default_rng(0))
    assert result.shape == image.shape and (result == result[..., :1]).all() and not (result == image).all()


def test_random_crop_reaches_every_place_and_says_when_there_is_none():
    crop = build_transforms([dict(name="random_crop", size=(2, 3), padding=1)])[0]
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    random = np.random.default_rng(0)
    windows = {crop(image, random).tobytes() for _ in range(400)}
    assert len(windows) == 4 * 4 and crop(image, random).shape == (2, 3, 1)
    with pytest.raises(UserError, match="put a resize before it"):
        build_transforms([dict(name="random_crop", size=(9, 9))])[0](image, random)
