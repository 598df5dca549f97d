"""ULSAM: counts, the properties its data sheet asks for, and where it may stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_params
from lookupjax.attention import create_mixer, record_taps
from lookupjax.attention.ulsam import boost
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys


def count(name, **options):
    return count_params(nnx.eval_shape(lambda: create_model(name, **options)))


@pytest.mark.parametrize("groups", [1, 4, 8, 16])
@pytest.mark.parametrize("dim", [512, 1024, 96, 160])
def test_module_has_5m_3g_parameters(dim, groups):
    mixer = nnx.eval_shape(lambda: create_mixer("ulsam", dim, groups, rngs=Keys(0)))
    assert count_params(mixer) == 5 * dim + 3 * groups


def test_network_counts_are_the_plain_networks_less_the_blocks():
    block = {96: 118_272, 160: 320_000}  # of MobileNet V2, as the paper rounds: 0.118 M, 0.320 M
    plain = count("mobilenet_v2")
    module = sum(5 * dim + 3 * 4 for dim in block)
    assert count("ulsam_v2_96_160") == plain - sum(block.values()) + module
    separable = 9 * 512 + 512 * 512 + 4 * 512  # 512 -> 512 of V1
    assert count("ulsam_v1") == count("mobilenet_v1") - separable + 5 * 512 + 3 * 4


def test_the_gain_is_the_weighted_mean():
    """Summed over the map, out - x of a channel is the attention-weighted mean of the channel."""
    x = jax.random.normal(jax.random.key(0), (2, 15, 8))
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 2, 15)), axis=-1)
    gained = (boost(x, weights) - x).sum(1).reshape(2, 2, 4)
    expected = jnp.einsum("bgn,bngc->bgc", weights, x.reshape(2, 15, 2, 4))
    np.testing.assert_allclose(gained, expected, atol=1e-6)


def test_channels_of_a_group_are_a_set():
    mixer = create_mixer("ulsam", 8, 1, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(0), (2, 12, 8))
    _, taps = record_taps(mixer, x, grid=(3, 4))
    order = jax.random.permutation(jax.random.key(1), 8)
    for vector in (mixer.scale, mixer.shift):
        vector[...] = vector[...][order]
    mixer.point[...] = mixer.point[...][:, order]
    _, permuted = record_taps(mixer, x[..., order], grid=(3, 4))
    np.testing.assert_allclose(taps["/weights"], permuted["/weights"], rtol=1e-5)


def test_only_blocks_that_keep_the_shape_are_replaced():
    with pytest.raises(UserError, match="layer 2 changes the shape"):
        create_model("mobilenet_v2", subspace=((2, "instead"),))
    with pytest.raises(UserError, match="is unknown: give a layer of 1 to 17"):
        create_model("mobilenet_v2", subspace=((18, "after"),))
