"""MixUp and CutMix: label mass, what is mixed with what, and the step that does it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax.data.mixing import Mixing, cutmix_weights, normalize_images
from lookupjax.data.transforms import Normalize
from lookupjax.errors import UserError


def batch(n=8, size=12, classes=8):
    """Example i is the constant image i + 1 of class i, so pixels tell who was mixed with whom."""
    image = jnp.broadcast_to(jnp.arange(1.0, n + 1)[:, None, None, None], (n, size, size, 3))
    return {"image": image, "label": jnp.arange(n) % classes, "weight": jnp.ones(n)}


@pytest.mark.parametrize("kind, per", [("mixup", "batch"), ("cutmix", "example"), ("both", "example")])
def test_label_mass_is_the_pixel_mass(kind, per):
    mixing = Mixing(mixup=0.8 * (kind != "cutmix"), cutmix=1.0 * (kind != "mixup"), per=per, num_classes=8)
    mix, plain = jax.jit(mixing), batch()
    shares = []
    for seed in range(20):
        mixed = mix(plain, jax.random.key(seed))
        label, image = np.asarray(mixed["label"]), np.asarray(mixed["image"])
        np.testing.assert_allclose(label.sum(1), 1.0, atol=1e-6)
        own, other = label[np.arange(8), np.arange(8)], label[np.arange(8), np.arange(-1, 7) % 8]
        values, neighbours = np.arange(1.0, 9), np.roll(np.arange(1.0, 9), 1)
        np.testing.assert_allclose(image.mean((1, 2, 3)), own * values + other * neighbours, rtol=1e-5)
        if kind == "cutmix":
            assert all(set(np.unique(image[i])) <= {values[i], neighbours[i]} for i in range(8))
        assert (len(np.unique(own.round(5))) > 1) or per == "batch" or kind == "cutmix"
        shares.append(own)
        np.testing.assert_array_equal(mixed["weight"], plain["weight"])
    assert np.std(shares) > 0.1


def test_cutmix_boxes_have_their_area():
    lam = jnp.linspace(0.0, 1.0, 500)
    weights = np.asarray(cutmix_weights(lam, 40, 60, jax.random.key(0)))
    cut = 1.0 - weights.mean((1, 2))
    assert (cut <= 1.0 - np.asarray(lam) + 1e-6).all()  # the border only ever cuts off
    assert weights[-1].min() == 1.0
    full = [w for w in weights if w[0].min() and w[-1].min() and w[:, 0].min() and w[:, -1].min()]
    assert len(full) > 50
    for w in full:  # within the border: one rectangle
        rows, columns = (w == 0).any(1), (w == 0).any(0)
        assert (w == 0).sum() == rows.sum() * columns.sum()


def test_lambda_is_beta_and_switch_and_probability_hold():
    weights = jax.jit(lambda key, mixing: mixing.weights(4000, 4, 4, key), static_argnums=1)
    lam = np.asarray(weights(jax.random.key(0), Mixing(mixup=0.8)))[:, 0, 0]
    assert lam.mean() == pytest.approx(0.5, abs=0.02) and lam.var() == pytest.approx(1 / 10.4, abs=0.01)
    both = np.asarray(weights(jax.random.key(1), Mixing(mixup=0.8, cutmix=1.0, switch=0.25)))
    binary = np.isin(both, (0.0, 1.0)).all((1, 2)).mean()
    assert binary == pytest.approx(0.25, abs=0.03)
    some = np.asarray(weights(jax.random.key(2), Mixing(mixup=1.0, probability=0.3)))
    assert (some == 1.0).all((1, 2)).mean() == pytest.approx(0.7, abs=0.03)


def test_soft_labels_video_and_errors():
    mixing = Mixing(mixup=1.0, num_classes=4)
    video = {"image": jnp.ones((4, 2, 6, 6, 3)), "label": jnp.eye(4)}
    assert mixing(video, jax.random.key(0))["image"].shape == (4, 2, 6, 6, 3)
    with pytest.raises(UserError, match="one label"):
        mixing({"image": jnp.ones((2, 4, 4, 3)), "label": jnp.ones((2, 4, 4))}, jax.random.key(0))
    with pytest.raises(UserError, match="mixing\\.per"):
        Mixing(per="pixel")
    assert not Mixing().active and Mixing(cutmix=1.0).active


def test_normalisation_on_the_device_is_the_transform():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    for normalize in (Normalize(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        ours = normalize_images(jnp.asarray(images), normalize)
        np.testing.assert_allclose(ours, np.stack([normalize(x) for x in images]), rtol=1e-6, atol=1e-6)
