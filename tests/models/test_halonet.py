"""Properties of HaloNet that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.attention import record_taps
from lookupjax.attention.halo import HaloAttention, halo_windows, visible_keys
from lookupjax.attention.relative import RelativeAttention
from lookupjax.attention.window import WindowAttention
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys


def test_windows_are_blocks_with_their_surroundings():
    x = jax.random.normal(jax.random.key(0), (1, 8, 12, 2))
    windows = halo_windows(x, 4, 1).reshape(1, 2, 3, 6, 6, 2)
    np.testing.assert_array_equal(windows[:, 1, 1, :5], x[:, 3:8, 3:9])
    assert not windows[:, 1, :, 5].any() and not windows[:, :, 0, :, 0].any()


def test_without_halo_and_positions_it_is_window_attention():
    halo = HaloAttention(16, 2, block=4, halo=0, rngs=Keys(0))
    halo.rows[...], halo.columns[...] = jnp.zeros((7, 8)), jnp.zeros((7, 8))
    window = WindowAttention(16, 2, window=4, qkv_bias=False, rngs=Keys(1))
    for name in ("q", "k", "v", "out"):
        setattr(window, name, getattr(halo, name))
    x = jax.random.normal(jax.random.key(2), (2, 96, 16))
    np.testing.assert_allclose(halo(x, grid=(8, 12)), window(x, grid=(8, 12)), atol=1e-5)


def test_rows_before_the_halo_are_never_read():
    def loss(state, x):
        return jnp.square(nnx.merge(graphdef, state).over_map(x)).sum()

    graphdef, state = nnx.split(HaloAttention(16, 2, block=4, halo=2, rngs=Keys(0)))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 16))
    grads = nnx.to_pure_dict(jax.jit(jax.grad(loss))(state, x))
    for table in ("rows", "columns"):
        assert not grads[table][:4].any()
        assert (np.abs(grads[table][4:]).max(1) > 0).all()


def test_maps_that_the_block_does_not_divide():
    """What lies beyond the map is hidden: extending it by hand changes nothing inside."""
    x = jax.random.normal(jax.random.key(0), (1, 9, 8, 16))
    attention = HaloAttention(16, 2, block=4, halo=1, stride=2, rngs=Keys(0))
    assert attention.over_map(x).shape == (1, 5, 4, 16)
    _, taps = record_taps(attention, x.reshape(1, 72, 16), grid=(9, 8))
    visible = visible_keys((9, 8), (12, 8), 4, 1, False)
    weights = np.moveaxis(taps["/weights"], -1, 2)
    assert not weights[:, ~visible].any() and (weights[:, visible] > 0).all()
    assert visible.reshape(3, 2, 6, 6)[2].sum((1, 2)).tolist() == [12, 12]  # rows 7 and 8 of each window


def test_relative_attention_refuses_larger_maps():
    attention = RelativeAttention(16, 2, size=(4, 4), rngs=Keys(0))
    with pytest.raises(UserError, match="maps up to"):
        attention(jnp.zeros((1, 20, 16)), grid=(4, 5))


def test_user_errors():
    with pytest.raises(UserError, match="shortcut='pool' is unknown"):
        create_model("halonet_mu", shortcut="pool")
