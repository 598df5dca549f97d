"""Properties of BiFormer that its data sheet asks for (numbers: tests/test_parity.py)."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.attention import record_taps
from lookupjax.attention.bra import BiLevelRoutingAttention, EnhancedAttention, adaptive_max_pool
from lookupjax.errors import UserError
from lookupjax.interop.biformer import parameter
from lookupjax.interop.fixture import fill
from lookupjax.layers.rngs import Keys
from lookupjax.models.biformer import BiFormer


def test_all_regions_are_full_attention_with_the_scale_of_the_full_width():
    routed = BiLevelRoutingAttention(16, 2, regions=2, topk=4, rngs=Keys(0))
    full = EnhancedAttention(16, 2, local="values", qkv_bias=True, rngs=Keys(1))
    for name in ("k", "v", "local", "out"):
        setattr(full, name, getattr(routed, name))
    # 1 / sqrt(16) instead of 1 / sqrt(8)
    full.q.kernel[...] = routed.q.kernel[...] / jnp.sqrt(2.0)
    full.q.bias[...] = routed.q.bias[...] / jnp.sqrt(2.0)
    x = jax.random.normal(jax.random.key(2), (2, 48, 16))
    np.testing.assert_allclose(routed(x, grid=(6, 8)), full(x, grid=(6, 8)), atol=1e-5)


def test_stage_1_has_49_regions_of_64_queries_and_64_keys():
    def weights(images):
        return record_taps(create_model("biformer_t", depths=(1, 1, 1, 1)), images)[1]

    taps = jax.eval_shape(weights, jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    for stage, (heads, queries) in enumerate(((2, 64), (4, 16), (8, 4))):
        assert taps[f"stages/{stage}/0/attn/weights"].shape == (49, heads, queries, 64)
    assert taps["stages/3/0/attn/weights"].shape == (1, 8, 49, 49)


def test_the_choice_carries_no_gradient():
    """Moving k of a region that nobody chose changes nothing, and the means pass nothing on."""
    attention = BiLevelRoutingAttention(16, 2, regions=2, topk=1, local_kernel=0, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(1), (1, 64, 16))
    routes = record_taps(attention, x, grid=(8, 8), names=("routes",))[1]["/routes"]

    def loss(x):
        return jnp.square(attention(x, grid=(8, 8))[:, :4]).sum()  # queries of the first region's first row

    grad = np.asarray(jax.grad(loss)(x)).reshape(2, 4, 2, 4, 16).transpose(0, 2, 1, 3, 4).reshape(4, 16, 16)
    reached = {i for i in range(4) if grad[i].any()}
    assert reached == {0, int(routes[0, 0, 0])}


def test_adaptive_max_pool_overlaps_its_bins():
    x = jnp.arange(5.0).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(adaptive_max_pool(x, 2)[0, :, :, 0], [[2.0, 4.0]] * 2)


def test_layouts_have_the_reference_s_own_paths():
    """Every parameter of the other layouts has a name of its own in the reference's state dict."""
    asked = set()

    class Names(dict):
        def __contains__(self, name):
            return name.startswith("stages.0.blocks.0.norm1") or ".mlp.2." in name or "qkv_linear" in name

        def __getitem__(self, name):
            asked.add(name)
            raise KeyError(name)

    paths = [
        "stem/convs/0/kernel",
        "stem/norms/0/scale",
        "merges/1/norm/bias",
        "merges/1/conv/bias",
        "stages/1/0/mlp/fc2/kernel",
        "stages/1/0/attn/k/kernel",
    ]
    for path in paths:
        with pytest.raises(KeyError):
            parameter(Names(), path, (1,))
    assert asked == {
        "downsample_layers.0.0.weight",
        "downsample_layers.0.1.weight",
        "downsample_layers.2.0.bias",
        "downsample_layers.2.1.bias",
        "stages.1.blocks.0.mlp.2.weight",
        "stages.1.blocks.0.attn.qkv_linear.weight",
    }


OPTIONS: tuple[dict, ...] = (
    dict(),
    dict(mlp_local=True),
    dict(pre_norm=False),
    dict(layer_scale=0.5),
    dict(topk=(0, -2)),
    dict(topk=(1, -1)),
    dict(local="values"),
    dict(layout="swin", position_kernel=0),
    dict(layout="swin", position_kernel=0, norm="layer"),
)


def test_every_option_has_an_effect():
    """Parameters of the same place are the same in all models, so that only the option can differ."""
    tiny = dict(depths=(1, 1), dims=(16, 16), topk=(1, -2), head_dim=8, regions=2, mlp_ratios=(1.0, 1.0))

    def value(path, shape):
        drawn = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape) / 2
        return np.abs(drawn) if path.endswith("/var") else drawn

    def build(options):
        return fill(nnx.eval_shape(lambda: BiFormer(**(tiny | options), rngs=Keys(0))), value)

    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    run = jax.jit(lambda models, x: jnp.stack([model(x)["features"][0] for model in models]))
    features = np.asarray(run([build(options) for options in OPTIONS], images))
    apart = np.abs(features[:, None] - features[None]).max(-1)
    assert np.isfinite(features).all()
    assert apart[~np.eye(len(OPTIONS), dtype=bool)].min() > 0.1


def test_user_errors():
    with pytest.raises(UserError, match="pad='around' of attention 'bra'"):
        BiLevelRoutingAttention(16, 2, pad="around", rngs=Keys(0))
    with pytest.raises(UserError, match="routing_gradient needs soft_routing"):
        BiLevelRoutingAttention(16, 2, routing_gradient=True, rngs=Keys(0))
    with pytest.raises(UserError, match="need one entry per stage"):
        create_model("biformer_mu", depths=(1, 1))
