"""Properties of CrossFormer that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.attention.lsda import LongShortAttention, from_groups, to_groups
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.crossformer import CrossScaleEmbed


@pytest.mark.parametrize("interval", [1, 3])
def test_groups_and_back(interval):
    x = jax.random.normal(jax.random.key(0), (2, 12, 24, 3))
    groups = to_groups(x, 4, interval)
    np.testing.assert_array_equal(from_groups(groups, 4, interval, (12, 24)), x)
    if interval == 3:  # group (0, 1, i=2, i=0): rows 2, 5, 8, 11, columns 12, 15, 18, 21
        np.testing.assert_array_equal(groups[:, 9 + 6].reshape(2, 4, 4, 3), x[:, 2::3, 12::3])


def test_long_distance_is_short_distance_on_the_strided_map():
    options = dict(group=4, interval=4, position_bias=False)
    long = LongShortAttention(16, 2, kind="long", **options, rngs=Keys(0))
    short = LongShortAttention(16, 2, kind="short", **options, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 16))

    def strided(x):  # (4 g + i) -> (4 i + g) on both axes
        return x.reshape(2, 4, 4, 4, 4, 16).transpose(0, 2, 1, 4, 3, 5).reshape(2, 16, 16, 16)

    there = short(flatten_grid(strided(x)), grid=(16, 16)).reshape(2, 16, 16, 16)
    np.testing.assert_allclose(
        strided(there), long(flatten_grid(x), grid=(16, 16)).reshape(x.shape), atol=1e-5
    )


@pytest.mark.parametrize("pad", ["end", "centre"])
def test_padding_is_hidden(pad):
    """A constant value bias would leak from padded keys: it must come out unchanged."""
    attention = LongShortAttention(16, 2, kind="long", group=3, interval=2, pad=pad, rngs=Keys(0))
    attention.v.kernel[...] = jnp.zeros((16, 16))
    attention.v.bias[...] = jnp.arange(16.0)
    x = jax.random.normal(jax.random.key(0), (1, 35, 16))
    out = attention(x, grid=(5, 7))
    expected = attention.out(jnp.arange(16.0)[None, None])
    np.testing.assert_allclose(out, jnp.broadcast_to(expected, out.shape), atol=1e-5)


def test_cross_scale_embedding_gives_half_the_width_to_each_next_kernel():
    embed = nnx.eval_shape(lambda: CrossScaleEmbed(3, 96, (4, 8, 16, 32), dtype=jnp.float32, rngs=Keys(0)))
    assert [c.out_features for c in embed.convs] == [48, 24, 12, 12]
    assert [c.padding[0] for c in embed.convs] == [(0, 0), (2, 2), (6, 6), (14, 14)]
    assert embed.convs[3].strides == conv(3, 3, 4, stride=4, rngs=Keys(0)).strides


def test_small_maps_are_one_group():
    attention = LongShortAttention(16, 2, kind="long", group=7, interval=2, rngs=Keys(0))
    assert attention.grouping((5, 6)) == (5, 1)
    assert attention.grouping((14, 14)) == (7, 2)
    dense = LongShortAttention(16, 2, small_map="max", rngs=Keys(0))
    assert dense.grouping((5, 9)) == (9, 1)
    adaptive = LongShortAttention(16, 2, kind="long", group=7, rngs=Keys(0))
    assert adaptive.grouping((20, 24)) == (7, 4)


def test_user_errors():
    with pytest.raises(UserError, match="need one entry per stage"):
        create_model("crossformer_mu", depths=(1, 1, 1))
    with pytest.raises(UserError, match="pad='both' of attention 'lsda'"):
        LongShortAttention(16, 2, pad="both", rngs=Keys(0))
