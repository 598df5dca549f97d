"""Attentive probes: their counts, and the properties their data sheet asks for."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_params
from lookupjax.attention.pooling import POOLINGS, create_pooling
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys

COUNTS = {  # pooling parameters at width 768, as the reference's harness builds them
    "token": 0,
    "gap": 0,
    "ep": 614_400,
    "abmilp": 2_951_425,
    "simpool": 1_181_184,
    "esimpool": 1_536,
    "aim": 1_180_416,
    "clip": 2_515_200,
    "siglip": 7_085_568,
    "coca": 1_036_032,
    "cait": 7_091_712,
    "dinovit": 7_085_568,
    "jepa": 7_088_640,
    "dolg": 592_897,
    "cbam": 73_828,
    "cae": 2_366_976,
    "vitmhca": 1_772_544,
}


def test_parameter_counts():
    def count(name):
        return count_params(nnx.eval_shape(lambda: create_pooling(name, 768, rngs=Keys(0))))

    assert {name: count(name) for name in POOLINGS} == COUNTS


HEADS = dict(num_heads=4)


@cache
def tokens():
    return jax.random.normal(jax.random.key(0), (3, 16, 32))


@cache
def ep():
    return create_pooling("ep", 32, num_queries=4, rngs=Keys(1))


def with_query(pool, query):
    graphdef, state = nnx.split(pool)
    pool = nnx.merge(graphdef, state, copy=True)
    pool.query[...] = query
    return pool


def test_zero_queries_average_the_values():
    pooled = with_query(ep(), jnp.zeros((4, 32)))(tokens())
    np.testing.assert_allclose(pooled, ep().v(tokens()).mean(1), atol=1e-6)


def test_pooling_reads_a_set():
    order = jax.random.permutation(jax.random.key(2), 16)
    names = ("ep", "simpool", "aim", "siglip", "coca", "cait", "dinovit", "jepa", "abmilp", "vitmhca")
    own = {"ep": dict(num_queries=4), "simpool": {}, "coca": {}, "abmilp": {}}

    @jax.jit
    def both(x):
        pools = {name: create_pooling(name, 32, rngs=Keys(1), **own.get(name, HEADS)) for name in names}
        return {name: (pool(x), pool(x[:, order])) for name, pool in pools.items()}

    for name, pair in both(tokens()).items():
        np.testing.assert_allclose(*pair, atol=2e-6, err_msg=name)


def test_queries_own_their_slices():
    """Queries 0 and 1 and their value slices swapped: so are their blocks of the output."""
    swapped = with_query(ep(), ep().query[...][jnp.array([1, 0, 2, 3])])
    columns = jnp.concatenate([jnp.arange(8, 16), jnp.arange(8), jnp.arange(16, 32)])
    swapped.v.kernel[...] = swapped.v.kernel[...][:, columns]
    np.testing.assert_allclose(swapped(tokens()), ep()(tokens())[:, columns], atol=1e-6)


@pytest.mark.parametrize("backbone", ["vit_mu", "resnet_mu", "lookupvit_mu"])
def test_any_backbone_and_no_gradient_into_it(backbone):
    model = create_model("probe_mu", backbone=backbone, num_classes=5)
    images = jax.random.normal(jax.random.key(3), (2, 64, 64, 3))

    def loss(model):
        return jnp.square(model(images, rngs=Keys(0))["logits"]).sum()

    grads = nnx.to_pure_dict(jax.jit(nnx.grad(loss))(model))
    assert not any(np.any(g) for g in jax.tree.leaves(grads["backbone"]))
    assert np.any(grads["pool"]["query"]) and np.any(grads["classifier"]["head"]["kernel"])


def test_the_class_token_is_an_option():
    images = jnp.ones((1, 32, 32, 3))
    assert create_model("probe_mu", prefix=True).tokens(images)[0].shape == (1, 65, 32)
    assert create_model("probe_mu").tokens(images)[0].shape == (1, 64, 32)
    with pytest.raises(UserError, match="resnet_mu has no class token"):
        create_model("probe_mu", backbone="resnet_mu", prefix=True)
    with pytest.raises(UserError, match="did you mean 'simpool'"):
        create_model("probe_mu", pooling="simpol")
    with pytest.raises(UserError, match="must divide"):
        create_model("probe_mu", pooling_options=dict(num_queries=5))
    with pytest.raises(UserError, match="has positions for 196 tokens"):
        create_model("probe_mu", pooling="clip", pooling_options={})(images)
