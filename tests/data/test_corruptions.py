"""The corruptions against the authors' code.

corruptions_reference.npz holds every 16th pixel of what the original functions (hendrycks/robustness, or
imagecorruptions' port of the one that needs ImageMagick) made of `picture()`, under scikit-image 0.26, their
random draws taken from default_rng(100 + severity).
"""

import cv2
import numpy as np
import pytest

from lookupjax.data.corruptions import BENCHMARK, CORRUPTIONS, PARAMETERS, Corrupt, corrupt
from lookupjax.data.transforms import build_transforms
from lookupjax.errors import UserError
from lookupjax.evaluation.metrics import ALEXNET_ERRORS


def picture(size=224):
    random = np.random.default_rng(5)
    y, x = np.mgrid[:size, :size]
    image = np.zeros((size, size, 3))
    for k in range(3):
        image[..., k] = 120 + 60 * np.sin(x / (9 + 4 * k) + k) * np.cos(y / (13 - 2 * k))
        image[..., k] += 40 * ((x // 28 + y // 28) % 2) - 20 * (np.hypot(x - 112, y - 90) < 50) * k
    return np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def test_what_the_authors_code_gives(root):
    image = picture()
    with np.load(root / "tests" / "data" / "corruptions_reference.npz") as file:
        reference = dict(file)
    assert {k.rpartition("_")[0] for k in reference} == set(CORRUPTIONS) - {"impulse_noise", "frost"}
    for key, expected in reference.items():
        name, _, severity = key.rpartition("_")
        ours = corrupt(image, name, int(severity), np.random.default_rng(100 + int(severity)))[::16, ::16]
        error = np.abs(ours.astype(int) - expected)
        # snow is stored in 8 bits between two steps there; elsewhere only the last rounding may differ
        assert error.mean() < 0.5 and (name == "snow" or error.max() <= 1), (key, error.max(), error.mean())


def test_impulse_noise_and_frost(tmp_path):
    image = picture()
    for severity, share in enumerate(PARAMETERS["impulse_noise"], start=1):
        noisy = corrupt(image, "impulse_noise", severity, np.random.default_rng(0))
        salt, pepper = ((noisy == v) & (image != v) for v in (255, 0))
        assert (salt | pepper).mean() == pytest.approx(share, rel=0.05)
        assert salt.sum() / (salt | pepper).sum() == pytest.approx(0.5, abs=0.05)
    for number in range(1, 6):
        flat = np.full((230, 240, 3), 50 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"frost{number}.png"), flat)
    drawn = {corrupt(image, "frost", 2, np.random.default_rng(s), str(tmp_path)).tobytes() for s in range(40)}
    expected = {
        np.clip(0.8 * image + 0.6 * 50 * n + 1e-6, 0, 255).astype(np.uint8).tobytes() for n in range(1, 6)
    }
    assert drawn == expected
    larger = picture(256)
    assert corrupt(larger, "frost", 1, np.random.default_rng(0), str(tmp_path)).shape == larger.shape


@pytest.mark.parametrize("shape", [(40, 56, 3), (32, 32, 1)])
def test_other_sizes_and_grey(shape):
    image = np.random.default_rng(1).integers(0, 255, shape, np.uint8)
    for name in set(CORRUPTIONS) - {"frost"}:
        assert corrupt(image, name, 3, np.random.default_rng(2)).shape == shape


def test_a_transform_that_depends_on_the_image_alone():
    image = picture()[:64, :64]
    (transform,) = build_transforms(
        [{"name": "lookupjax.data.corruptions:Corrupt", "corruption": "gaussian_noise", "severity": 3}]
    )
    first, other = transform(image), transform(image[::-1])
    np.testing.assert_array_equal(transform(image), first)
    assert np.any(other[::-1] != first)
    stored = Corrupt("contrast", 1, stored=True)(image)
    plain = Corrupt("contrast", 1)(image)
    assert 0 < np.abs(stored.astype(int) - plain).mean() < 6


def test_names():
    assert len(BENCHMARK) == 15 and len(CORRUPTIONS) == 19 and set(ALEXNET_ERRORS) == set(BENCHMARK)
    with pytest.raises(UserError, match=r"no corruption 'fogg' .*'fog'"):
        Corrupt("fogg", 1)
    with pytest.raises(UserError, match="severities are 1 to 5"):
        Corrupt("fog", 6)(picture())
    with pytest.raises(UserError, match="frost1 to frost5"):
        corrupt(picture(), "frost", 1, np.random.default_rng(0), "/nowhere")
