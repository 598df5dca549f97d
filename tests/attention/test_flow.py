"""Flow-Attention: conservation, sets, causality, long sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lookupjax.attention import create_mixer, record_taps
from lookupjax.attention.flow import CHUNK, causal_product, flow_attention, flows, phi
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys


def qkv(m: int, n: int):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 3, length, 8)) for key, length in zip(keys, (m, n, n)))
    return phi(q, "sigmoid"), phi(k, "sigmoid"), v


def test_flows_are_conserved():
    """sum_i s_i = S and sum_j c_j = L; here through the allocation and the competition they make."""
    q, k, _ = qkv(12, 20)
    gain, competition = flows(q, k, clamp=None, eps=0.0)
    incoming = jnp.einsum("bhmc,bhnc->bhm", q, k)
    sinks = jax.scipy.special.logit(gain * incoming) * (20 / 12)
    np.testing.assert_allclose(sinks.sum(-1), 20.0, rtol=1e-3)
    np.testing.assert_allclose(competition.sum(-1), 20.0, rtol=1e-5)
    sources = jnp.einsum("bhnc,bhc->bhn", k, (q / incoming[..., None]).sum(2))
    np.testing.assert_allclose(sources.sum(-1), 12.0, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(sources, axis=-1) * 20, competition, rtol=1e-5)


def test_sources_are_a_set():
    q, k, v = qkv(12, 20)
    order = jax.random.permutation(jax.random.key(1), 20)
    ours = flow_attention(q, k, v)
    np.testing.assert_allclose(flow_attention(q, k[:, :, order], v[:, :, order]), ours, atol=1e-5)


def test_causal_is_blind_to_later_tokens_and_passes_a_single_one():
    q, k, v = qkv(10, 10)
    run = jax.jit(lambda v: flow_attention(q, k, v, causal=True))
    np.testing.assert_array_equal(run(v)[:, :, :6], run(v.at[:, :, 6:].add(3.0))[:, :, :6])
    np.testing.assert_allclose(run(v)[:, :, 0], jax.nn.sigmoid(1.0) * v[:, :, 0], rtol=1e-4)
    with pytest.raises(UserError, match="as many keys as queries"):
        flow_attention(q[:, :, :4], k, v, causal=True)


def test_chunks_do_not_show():
    q, k, v = qkv(2 * CHUNK + 5, 2 * CHUNK + 5)
    whole = jnp.tril(jnp.einsum("bhic,bhjc->bhij", q, k)) @ v
    np.testing.assert_allclose(causal_product(q, k, v), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_the_map_formed_for_a_listener_is_the_one_in_use(causal):
    mixer = create_mixer("flow", 24, 4, phi="relu", clamp=None, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(2), (2, 16, 24))
    run = jax.jit(lambda x: (mixer(x, causal=causal), *record_taps(mixer, x, causal=causal)))
    plain, tapped, taps = run(x)
    np.testing.assert_allclose(plain, tapped, atol=1e-5)
    (weights,) = taps.values()
    assert weights.shape == (2, 4, 16, 16) and (not causal or not np.triu(weights, 1).any())
