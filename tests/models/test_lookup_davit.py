"""LookupDaViT: the streams of LookupViT in the last stages of DaViT."""

import jax
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_products, trace_model
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models.lookup_davit import LookupStage


def macs(name, **call):
    model = nnx.eval_shape(lambda: create_model(name))
    return count_products(trace_model(model, (224, 224), **call)) / 1e9


def test_it_costs_less_than_davit_and_less_with_fewer_compressed_tokens():
    costs = [macs("lookup_davit_t", compressed=(n, n)) for n in (3, 5, 7)]
    assert costs == sorted(costs)
    assert costs[1] < 0.75 * macs("davit_t")


def test_one_model_serves_every_grid_and_any_size():
    sizes = dict(dims=(16, 16, 32), depths=(1, 2, 1), num_heads=(2, 2, 4), lookup_stages=2)

    def tokens(images):
        model = create_model("lookup_davit_mu", **sizes)
        return [
            (model.encode(images, compressed=g), model.features(images)) for g in ((1, 1), (2, 3), (9, 9))
        ]

    out = jax.eval_shape(tokens, jax.ShapeDtypeStruct((2, 36, 52, 3), np.float32))
    assert [t.shape for t, _ in out] == [(2, 1, 32), (2, 6, 32), (2, 81, 32)]
    assert [m.shape for m in out[0][1]] == [(2, 9, 13, 16), (2, 5, 7, 16), (2, 3, 4, 32)]


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_the_lookup_grid_is_that_of_the_last_map(size):
    model = nnx.eval_shape(lambda: create_model("lookup_davit_mu"))
    maps = nnx.eval_shape(lambda m, x: m.features(x), model, jax.ShapeDtypeStruct((1, *size, 3), "float32"))
    assert model.lookup_grid(size) == maps[-1].shape[1:3]


def test_the_compressed_stream_reaches_the_next_stage():
    options = dict(carry=True, mlp_ratio=1.0, lookup_div=2.0, eps=1e-5, dtype=np.float32)
    graphdef, state = nnx.split(LookupStage(8, 8, 1, 1, **options, rngs=Keys(0)))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    z_p = jax.random.normal(jax.random.key(1), (2, 1, 4, 8))

    @jax.jit
    def ends(state, z_p, x):
        stage = nnx.merge(graphdef, state)
        return [stage(z, x, grid=(2, 2), rates=(0.0,)) for z in z_p]

    for one, other in zip(*ends(state, z_p, x)):
        assert np.abs(one - other).max() > 1e-3


def test_user_errors():
    with pytest.raises(UserError, match="must leave at least one of 2 stages"):
        create_model("lookup_davit_mu", lookup_stages=2)
    with pytest.raises(UserError, match="needs 2 positive lengths"):
        create_model("lookup_davit_mu", compressed=(3,))
