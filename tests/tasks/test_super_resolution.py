"""PSNR and SSIM against their definitions, and what the task shrinks and measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.data.builders.photos import TILE, photos, tiles
from lookupjax.errors import UserError
from lookupjax.tasks import create_task
from lookupjax.tasks.super_resolution import SuperResolution, luma, psnr, shrink, ssim


def defined_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM window by window, in float64."""
    distance = np.arange(11) - 5
    bell = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * 1.5**2))
    bell /= bell.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (bell * x).sum(), (bell * y).sum()
            vx, vy = (bell * (x - mx) ** 2).sum(), (bell * (y - my) ** 2).sum()
            cov = (bell * (x - mx) * (y - my)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_figures_are_their_definitions():
    random = np.random.default_rng(0)
    a = random.uniform(0, 255, (2, 16, 19))
    b = np.clip(a + random.normal(0, [[[3.0]], [[30.0]]], a.shape), 0, 255)
    ours = ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(ours, [defined_ssim(*pair) for pair in zip(a, b)], rtol=1e-4)
    decibel = psnr(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(decibel, 20 * np.log10(255 / np.sqrt(((a - b) ** 2).mean((1, 2)))), rtol=1e-5)
    with pytest.raises(UserError, match="at least 11 pixels"):
        ssim(jnp.ones((1, 10, 20)), jnp.ones((1, 10, 20)))


def test_luma_spans_the_studio_range():
    colours = jnp.array([[0.0, 0, 0], [1, 1, 1], [0, 1, 0]])[:, None, None]
    np.testing.assert_allclose(luma(colours)[:, 0, 0], [16, 235, 144.553], rtol=1e-5)


def test_shrinking_keeps_the_mean_and_eight_bits():
    images = jax.random.uniform(jax.random.key(0), (1, 12, 24, 3))
    low = shrink(images, 3)
    assert low.shape == (1, 4, 8, 3)
    np.testing.assert_allclose(low * 255, jnp.round(low * 255), atol=1e-4)
    np.testing.assert_allclose(shrink(jnp.full((1, 8, 8, 1), 0.5), 2), 128 / 255, atol=1e-6)


def test_border_and_rounding():
    task = SuperResolution(scale=2)
    image = jax.random.uniform(jax.random.key(1), (2, 21, 20, 3))
    target = jnp.round(image * 255) / 255
    frame = target[:, :20].at[:, :2].set(0.0).at[:, :, -2:].set(1.0) + 0.4 / 255  # rounds back inside
    figures = task.evaluate({"image": frame, "low": shrink(image[:, :20], 2)}, {"image": target})
    assert np.isinf(figures["psnr"]).all()
    np.testing.assert_allclose(figures["ssim"], 1.0, atol=1e-5)
    assert (figures["bicubic_psnr"] < 40).all()


def test_task_takes_the_models_scale_and_refuses_classifiers():
    assert create_task({"name": "super_resolution"}, create_model("catanet_mu", scale=3)).scale == 3
    with pytest.raises(UserError, match="needs a model that enlarges"):
        create_task({"name": "super_resolution"}, create_model("vit_mu"))


def test_tiles_do_not_overlap_and_fill_the_photos():
    for image in photos().values():
        cut = list(tiles(image))
        rows, columns = (n // TILE for n in image.shape[:2])
        assert len(cut) == rows * columns
        np.testing.assert_array_equal(np.concatenate(cut[:columns], axis=1), image[:TILE, : columns * TILE])
