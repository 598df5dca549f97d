"""Properties of LookupViT that its data sheet asks for (numbers: tests/test_parity.py)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.counts import count_products, trace_model
from lookupjax.attention import record_taps, with_taps
from lookupjax.attention.lookup import absorb
from lookupjax.errors import UserError
from lookupjax.layers.position import resize_grid
from lookupjax.layers.rngs import Keys


def test_macs_are_the_papers_formula():
    model = nnx.eval_shape(lambda: create_model("lookupvit_b16"))
    n, d = 196, 768
    for m in (3, 5, 7, 10):
        m2 = m * m
        layer = (3 * n * m2 + 2 * m2 * m2) * d + (4 * n + 15 * m2) * d * d
        assert model.macs((224, 224), (m, m)) == 12 * layer + n * 768 * d + 2 * d * 1000
    assert model.macs((224, 224), (5, 5)) == pytest.approx(8.47e9, rel=1e-3)


@cache
def model(**options):
    """A tiny model whose heads are not zero, so that every option shows in the logits."""
    model = create_model("lookupvit_mu", num_classes=5, **options)
    for head in (model.head_p, model.head_l):
        head.kernel[...] = jax.random.normal(jax.random.key(1), head.kernel.shape)
    return model


@cache
def images():
    return jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


@pytest.mark.parametrize("grid", [(1, 1), (2, 4), (8, 8), (9, 3)])
def test_one_set_of_weights_serves_every_grid(grid):
    out, taps = record_taps(model(), images(), compressed=grid)
    assert out["logits"].shape == (2, 5)
    weights = taps["blocks/1/cross/gather/weights"]
    assert weights.shape == (2, 2, grid[0] * grid[1], 64)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


def test_logits_are_the_mean_of_both_heads():
    out = model()(images())
    mean = 0.5 * (out["logits_compressed"] + out["logits_lookup"])
    np.testing.assert_allclose(out["logits"], mean, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        dict(reuse="renorm"),
        dict(reuse="softmax"),
        dict(qk_norm="head"),
        dict(qk_norm="none"),
        dict(cross_pre_norm=False),
        dict(out_proj=False),
        dict(share_cross=True),
        dict(pos="separate"),
        dict(antialias=False),
        dict(gelu="exact"),
        dict(pool="mean_norm"),
        dict(eps=1e-3),
        dict(mlp_ratio=2.0),
        dict(lookup_div=4.0),
    ],
    ids=lambda o: "-".join(map(str, *o.items())),
)
def test_every_option_is_live(options):
    default = model()(images())["logits"]
    assert not np.allclose(model(**options)(images())["logits"], default, atol=1e-6)


def test_resize_is_linear():
    f = jax.random.normal(jax.random.key(2), (2, 14, 14, 3))
    p = jax.random.normal(jax.random.key(3), (14, 14, 3))
    together = resize_grid(f + p[None], (5, 5))
    np.testing.assert_allclose(resize_grid(f, (5, 5)) + resize_grid(p, (5, 5))[None], together, atol=1e-6)


def test_lookup_tokens_are_a_set():
    """Permuting the lookup tokens changes nothing but their order while the compressed ones are held."""
    m = model()
    z_p, z_l = m.tokenize(images(), (3, 3))
    order = jax.random.permutation(jax.random.key(4), z_l.shape[1])
    block = m.blocks[0]
    a_p, a_l = block(z_p, z_l, cross=block.cross, grid=(3, 3))
    b_p, b_l = block(z_p, z_l[:, order], cross=block.cross, grid=(3, 3))
    np.testing.assert_allclose(a_p, b_p, atol=1e-5)
    np.testing.assert_allclose(a_l[:, order], b_l, atol=1e-5)


def test_infusion_uses_attention_from_before_and_values_from_after_refinement():
    m = model()
    plain, taps = record_taps(m, images(), names=("weights", "output"))
    gathered, infused = (taps[f"blocks/0/cross/{half}/weights"] for half in ("gather", "infuse"))
    np.testing.assert_array_equal(gathered, infused)

    def no_refinement(path, name, value):
        return jnp.zeros_like(value) if (path, name) == ("blocks/0/attn", "output") else value

    tapped = with_taps(m, no_refinement)(images())
    assert not np.allclose(tapped["logits_lookup"], plain["logits_lookup"], atol=1e-5)


def test_unused_heads_cost_nothing():
    """Asked only for the compressed logits, XLA drops the last infusion and lookup MLP."""
    graphdef, state = nnx.split(model())

    def flops(*heads):
        def fn(state, x):
            out = nnx.merge(graphdef, state)(x)
            return [out[h] for h in heads]

        return jax.jit(fn).lower(state, images()).compile().cost_analysis()["flops"]

    assert flops("logits_compressed") < 0.97 * flops("logits")


def test_training_mode_needs_only_rngs():
    m = create_model("lookupvit_mu", num_classes=5, dropout=0.5, drop_path=0.5)
    for head in (m.head_p, m.head_l):
        head.kernel[...] = jnp.ones_like(head.kernel[...])
    quiet = m(images())["logits_lookup"]
    np.testing.assert_array_equal(quiet, m(images())["logits_lookup"])
    a, again, b = (m(images(), rngs=Keys(seed))["features"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert not np.allclose(a, b)


def test_video_has_a_time_axis():
    m = create_model("lookupvit_video_mu", num_classes=3, compressed=(2, 2, 1))
    clip = jnp.ones((1, 8, 32, 32, 3))
    assert m(clip)["logits"].shape == (1, 3)
    assert m.encode(clip).shape == (1, 4, 32)


def test_other_image_sizes_resize_the_table():
    assert model()(jnp.ones((1, 20, 44, 3)))["logits"].shape == (1, 5)


def test_user_errors():
    with pytest.raises(UserError, match="smaller than one patch"):
        model()(jnp.ones((1, 3, 32, 3)))
    with pytest.raises(UserError, match="expects 3 channels, the input has 1"):
        model()(jnp.ones((1, 32, 32, 1)))
    with pytest.raises(UserError, match="needs 2 positive lengths"):
        model()(images(), compressed=(3,))
    with pytest.raises(UserError, match="reuse='transposed' is unknown"):
        create_model("lookupvit_mu", reuse="transposed")
    with pytest.raises(UserError, match="did you mean 'mlp_ratio'"):
        create_model("lookupvit_mu", mlpratio=2)
    with pytest.raises(UserError, match="did you mean 'lookupvit_b16'"):
        create_model("lookupvit_b_16")
    with pytest.raises(UserError, match="there is no attention 'softmx'"):
        create_model("lookupvit_mu", attention="softmx")


@pytest.mark.parametrize("reuse", ["transpose", "renorm", "softmax"])
def test_implementations_change_neither_outputs_nor_gradients(reuse):
    """Same parameters, other order of products; the compressed grid is small enough for "auto" to absorb."""
    graphdefs, losses, x = {}, {}, images()
    for impl in ("plain", "absorbed", "auto", "fused"):
        m = create_model("lookupvit_mu", num_classes=5, depth=1, reuse=reuse, cross_impl=impl)
        graphdefs[impl], params = nnx.split(m)

    def loss(params, impl):
        out = nnx.merge(graphdefs[impl], params)(x, compressed=(2, 3))
        return jnp.square(out["logits_compressed"]).sum() + jnp.square(out["logits_lookup"] + 1.0).sum()

    keys = iter(jax.random.split(jax.random.key(7), 200))  # biases and heads are zero at first
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    with jax.default_matmul_precision("highest"):
        for impl in graphdefs:
            losses[impl] = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, impl)
    value, grads = losses["plain"]
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    for impl in ("absorbed", "auto", "fused"):
        np.testing.assert_allclose(losses[impl][0], value, rtol=2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), losses[impl][1], grads)


def macs_of_b16(impl):
    model = nnx.eval_shape(lambda: create_model("lookupvit_b16", cross_impl=impl))
    return count_products(trace_model(model, (224, 224)))


def test_absorption_is_chosen_by_cost():
    """The choices of the speed plan: up to 5x5 at 224 pixels, up to 7x7 at 384; with copies fewer."""

    def chosen(n, copies):
        return [m for m in (9, 25, 49, 100) if absorb("auto", n, m, 768, 12, copies=copies)]

    assert chosen(196, False) == [9, 25] and chosen(576, False) == [9, 25, 49]
    # 8 does not divide 196: the copies of padded tokens cost more than absorption saves
    assert chosen(196, True) == [9] and chosen(576, True) == [9, 25]
    plain, absorbed = (macs_of_b16(impl) for impl in ("plain", "absorbed"))
    assert plain / 1e9 == pytest.approx(8.47, rel=0.01) and absorbed / 1e9 == pytest.approx(7.04, rel=0.01)
    with pytest.raises(UserError, match="cross_impl"):
        model(cross_impl="quick")(images())
