"""Properties of PATNet that its data sheet asks for (numbers: tests/test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_params
from lookupjax.attention.irpe import distance_buckets
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models.patnet import ChannelGate, SelfMixing, mean_and_spread


def test_buckets_are_rounded_distances_then_logarithmic():
    buckets = distance_buckets((4, 5))
    assert buckets[0, 3 * 5 + 4] == 45  # distance (3, 4)
    assert buckets.min() == 40 and np.array_equal(buckets, buckets.T)
    line = distance_buckets((1, 200))[0]
    assert line[20] == 60 and line[21] < 62 and line[160] == line[199] == 80


def test_attention_of_a_single_position_is_its_value():
    mix = SelfMixing(16, 4, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(1), (2, 1, 1, 16))
    y = mix(x)[..., 4:]
    np.testing.assert_allclose(y, mix.attn.out(mix.attn.v(mix.norm(x[..., 4:]))), atol=1e-6)


def test_gate_is_open_above_three_and_shut_below_minus_three():
    gate = ChannelGate(3, dtype=jnp.float32, rngs=Keys(0))
    gate.fc.kernel[...] = jnp.zeros((6, 3))
    gate.norm.bias[...] = jnp.array([3.0, -3.0, 0.0])
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    np.testing.assert_allclose(gate(x), x * jnp.array([1.0, 0.0, 0.5])[None, None, None], atol=1e-6)


def test_spread_is_unbiased_and_has_a_gradient_on_constant_maps():
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    np.testing.assert_allclose(mean_and_spread(x)[:, 4:], np.std(x, axis=(1, 2), ddof=1), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: mean_and_spread(x).sum())(jnp.ones((1, 2, 2, 1)))).all()
    with pytest.raises(UserError, match="at least two positions"):
        mean_and_spread(jnp.ones((1, 1, 1, 2)))


def test_options():
    def count(**options):
        return count_params(nnx.eval_shape(lambda: create_model("patnet_t0", **options)))

    assert count(num_heads=6) - count() == 324  # two more tables of 81 in two blocks
    assert count(channel_attention=False) < count()
    assert count(layer_scale=1e-6) - count() == 32 + 2 * 64 + 8 * 128 + 2 * 256
    with pytest.raises(UserError, match="cannot be split into num_heads=5"):
        count(num_heads=5)
    with pytest.raises(UserError, match="activation='gellu' is unknown"):
        count(activation="gellu")
