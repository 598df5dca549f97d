import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.norm import BatchNorm, LayerNorm
from lookupjax.layers.position import resize_grid, resize_matrix
from lookupjax.layers.regularise import drop_path, drop_path_rates, dropout
from lookupjax.layers.rngs import Keys


@pytest.mark.parametrize("patch, size", [((4, 4), (18, 13)), ((2, 4, 4), (5, 8, 9))])
def test_patch_embedding_is_a_strided_convolution(patch, size):
    embed = PatchEmbed(patch, 3, 8, rngs=Keys(0))
    embed.bias[...] = jnp.arange(8.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    spatial = "DHW"[-len(patch) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    expected = jax.lax.conv_general_dilated(x, embed.kernel[...], patch, "VALID", dimension_numbers=layout)
    np.testing.assert_allclose(
        embed(x), expected + jnp.arange(8.0).reshape((1,) * (x.ndim - 1) + (8,)), atol=1e-5
    )
    assert embed(x).shape[1:-1] == token_grid(size, patch)


def test_layer_norm_equals_flax_and_keeps_digits_far_from_zero():
    x = jax.random.normal(jax.random.key(0), (4, 32))
    np.testing.assert_allclose(
        LayerNorm(32, rngs=Keys(0))(x), nnx.LayerNorm(32, rngs=nnx.Rngs(0))(x), atol=1e-5
    )
    far = LayerNorm(32, rngs=Keys(0))(x + 1e3)
    np.testing.assert_allclose(far, LayerNorm(32, rngs=Keys(0))(x), atol=2e-3)


def test_batch_norm_statistics():
    norm = BatchNorm(3, rngs=Keys(0))
    x = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (50, 4, 3))
    y = norm(x, train=True)
    np.testing.assert_allclose(y.mean((0, 1)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1), ddof=1), rtol=1e-5)
    evaluated = norm(x)
    assert not np.allclose(evaluated, y)
    np.testing.assert_array_equal(evaluated, norm(x))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["linear", "cubic"]), st.booleans())
def test_resize_agrees_with_jax_image(n_in, n_out, method, antialias):
    x = np.random.default_rng(0).normal(size=(n_in, 2)).astype(np.float32)
    expected = jax.image.resize(x, (n_out, 2), method, antialias=antialias)
    np.testing.assert_allclose(resize_matrix(n_in, n_out, method, antialias) @ x, expected, atol=1e-5)


def test_resize_to_the_same_grid_is_the_identity_and_zoom_keeps_corners():
    x = jax.random.normal(jax.random.key(0), (5, 7, 3))
    assert resize_grid(x, (5, 7)) is x
    zoomed = resize_grid(x, (9, 4), method="zoom")
    np.testing.assert_allclose(zoomed[0, 0], x[0, 0], atol=1e-6)
    np.testing.assert_allclose(zoomed[-1, -1], x[-1, -1], atol=1e-6)
    with pytest.raises(UserError, match="resize method 'lanczos'"):
        resize_grid(x, (3, 3), method="lanczos")


def test_regularisers_keep_the_mean_and_need_randomness():
    x = jnp.ones((4000, 3))
    assert dropout(x, 0.5, None) is x and drop_path(x, 0.5, None) is x
    for noisy in (dropout(x, 0.25, Keys(0)), drop_path(x, 0.25, Keys(0))):
        assert set(np.unique(noisy).round(4)) == {0.0, np.float32(4 / 3).round(4)}
        assert noisy.mean() == pytest.approx(1.0, abs=0.03)
    assert (drop_path(x, 0.5, Keys(0)).std(1) == 0).all()  # whole examples
    assert drop_path_rates(0.3, 4) == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_keys_stand_for_flax_rngs():
    keys, again = Keys(0), Keys(0)
    a, b = keys.params(), keys.dropout()
    assert not (jax.random.key_data(a) == jax.random.key_data(b)).all()
    np.testing.assert_array_equal(jax.random.key_data(again["params"]()), jax.random.key_data(a))
    assert nnx.Linear(2, 3, rngs=keys).kernel.shape == (2, 3)
