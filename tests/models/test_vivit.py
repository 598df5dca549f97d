"""ViViT and the video forms of LookupViT: what no fixture shows, and a start from image models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lookupjax import create_model
from lookupjax.analysis.attention import footprints
from lookupjax.analysis.counts import count_products, trace_model, xla_flops
from lookupjax.attention import record_taps
from lookupjax.attention.softmax import merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.interop import vit
from lookupjax.interop.weights import load_weights
from lookupjax.layers.rngs import Keys
from lookupjax.models.vivit import FORMS, FactorisedHeads, even_frames
from lookupjax.paths import named_leaves
from lookupjax.training.init import fit

IMAGE = dict(patch=(8, 8), pos_grid=(4, 4), dim=32, depth=2, num_heads=2, num_classes=5)
VIDEO = IMAGE | dict(patch=(2, 8, 8), pos_grid=(4, 4, 4))


def filled(name: str, **options) -> nnx.Module:
    """A model whose parameters are all drawn, on one compiled program."""
    model = nnx.eval_shape(lambda: create_model(name, **options))
    graphdef, state = nnx.split(model)
    random = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(random.normal(0, 0.2, x.shape).astype(np.float32))  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, state))


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """(a ViT with a class token, its npz file, an image, its tokens before and after the blocks)."""
    model = filled("vit_mu", **IMAGE)
    path = tmp_path_factory.mktemp("weights") / "vit.npz"
    np.savez(path, **vit.export(model))
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    tokens = jax.jit(lambda m, x: (m.tokenize(x), m.norm(m.features(x))))(model, image)
    return model, path, image, tokens


@pytest.mark.parametrize("init", ["central", "average"])
def test_equal_frames_have_the_image_models_tokens(image_model, init):
    _, path, image, (tokens, normed) = image_model
    model = create_model("vivit_mu", **VIDEO, tubelet_init=init)
    report = load_weights(model, path, strict=False)
    assert all(name.startswith("temporal/") for name in report.missing) and not report.resized
    assert not report.unexpected
    clip = jnp.repeat(image[:, None], 8, axis=1)
    ours = jax.jit(lambda m, x: (m.tokenize(x), m.norm(m.sequences(x))))(model, clip)
    for frame in range(4):
        np.testing.assert_allclose(ours[0][frame], tokens[0], atol=1e-5)
        np.testing.assert_allclose(ours[1][frame], normed[0], atol=5e-5)
    other = clip.at[:, ::2].set(0.0)  # the first frame of each tubelet
    changed = not np.allclose(jax.jit(lambda m, x: m.embed(x))(model, other), model.embed(clip), atol=1e-4)
    assert changed == (init == "average")


def test_positions_repeat_over_time_and_meet_other_grids(image_model, capsys):
    source, path, _, _ = image_model
    table = np.asarray(source.pos[...])
    model = create_model("vivit_mu", **VIDEO | dict(form="joint"), weights=path)
    np.testing.assert_array_equal(model.pos[...], np.broadcast_to(table, (4, 4, 4, 32)))
    np.testing.assert_array_equal(model.cls_pos[...], source.cls_pos[...])
    larger = VIDEO | dict(form="joint", pos_grid=(4, 7, 5))
    with pytest.raises(UserError, match=r"resized 1: pos \(4x4x4 -> 4x7x5"):
        create_model("vivit_mu", **larger, weights=path)
    model = create_model("vivit_mu", **larger, weights=path, strict=False)
    np.testing.assert_allclose(model.pos[2, 0, 0], table[0, 0], atol=1e-6)  # corners are kept
    np.testing.assert_allclose(model.pos[3, 6, 4], table[3, 3], atol=1e-6)


def test_factorised_attention_takes_the_images_twice(image_model):
    source, path, _, _ = image_model
    options = VIDEO | dict(form="factorised_self_attention", head="gap")
    model = create_model("vivit_mu", **options, weights=path, strict=False)
    kernel = source.blocks[1].attn.v.kernel[...]
    np.testing.assert_array_equal(model.blocks[1].attn.v.kernel[...], kernel)
    np.testing.assert_array_equal(model.blocks[1].time_attn.v.kernel[...], kernel)
    np.testing.assert_array_equal(model.blocks[1].time_norm.scale[...], np.ones(32))


@pytest.mark.parametrize("name", ["lookupvit_video_mu", "lookup_vivit_mu"])
def test_lookupvit_video_starts_from_an_image_model(image_model, name):
    source, path, _, _ = image_model
    model = create_model(name, **VIDEO, weights=path, strict=False)
    frames = getattr(model, "frames", model)
    np.testing.assert_array_equal(frames.embed.kernel[1], source.embed.kernel[...])
    assert not np.any(frames.embed.kernel[0])
    np.testing.assert_array_equal(frames.pos_lookup[0], source.pos[...])


def test_a_run_of_an_image_model_is_inflated():
    """What training.init does with another run's arrays."""
    image = named_leaves(nnx.to_pure_dict(nnx.state(filled("vit_mu", **IMAGE))))
    options = VIDEO | dict(form="factorised_self_attention", head="gap", pos_grid=(3, 5, 4))
    target = named_leaves(nnx.to_pure_dict(nnx.state(filled("vivit_mu", **options))))
    values, report = fit(target, image, lambda name: "time_norm" not in name, "run", "average")
    assert not report.missing and sorted(report.unexpected) == ["cls", "cls_pos"]
    assert report.inflated == ["embed/kernel 8x8x3x32 -> 2x8x8x3x32", "pos 4x4x32 -> 3x5x4x32"]
    np.testing.assert_allclose(values["embed/kernel"][0], image["embed/kernel"] / 2, rtol=1e-6)
    np.testing.assert_array_equal(values["pos"][0], values["pos"][2])
    _, report = fit(target, image, lambda name: "time_norm" not in name, "run", "random")
    assert report.missing == ["embed/kernel 8x8x3x32 -> 2x8x8x3x32"]


def test_half_of_the_heads_attend_across_frames():
    """Against attention over all tokens that is masked to the same place, or to the same frame."""
    frames, places, heads = 3, 4, 4
    mixer = FactorisedHeads(16, heads, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(1), (2, frames * places, 16))

    def plain(mixer, x):
        q, k, v = (split_heads(p(x), heads) for p in (mixer.q, mixer.k, mixer.v))
        place = jnp.arange(frames * places)
        same_place = (place[:, None] - place[None]) % places == 0
        same_frame = place[:, None] // places == place[None] // places
        allowed = jnp.stack([same_place] * 2 + [same_frame] * 2)[None]
        scores = jnp.where(allowed, jnp.einsum("bhmc,bhnc->bhmn", q, k) / 2.0, -1e30)
        weights = jax.nn.softmax(scores, axis=-1)
        return mixer.out(merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v))), weights

    with jax.default_matmul_precision("highest"):
        expected, weights = jax.jit(plain)(mixer, x)
        ours = jax.jit(lambda m, x: m(x, grid=(frames, 2, 2)))(mixer, x)
        seen, taps = jax.jit(lambda m, x: record_taps(m, x, grid=(frames, 2, 2)))(mixer, x)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    np.testing.assert_allclose(taps["/weights"], weights, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_forms_heads_and_clips_of_other_sizes(form):
    options = VIDEO | dict(form=form, depth=1, pos_grid=(2, 4, 4))
    shapes = {}
    for head in ("gap", "max") if form in FORMS[2:] else ("token", "sum"):
        model = nnx.eval_shape(lambda head=head: create_model("vivit_mu", **options, head=head))
        clip = jax.ShapeDtypeStruct((2, 7, 40, 24, 3), jnp.float32)  # a frame is left over
        out, features, tokens = jax.eval_shape(lambda m, x: (m(x), m.features(x), m.encode(x)), model, clip)
        shapes[head] = out["logits"].shape, features.shape, tokens.shape
        size = (4, 32, 32)
        assert model.macs(size) == count_products(trace_model(model, size))
    assert set(shapes.values()) == {((2, 5), (2, 3, 5, 3, 32), (2, 45, 32))}


def test_sampled_frames_and_a_mean_over_frames():
    assert even_frames(8, 3) == (2, 4, 6) and even_frames(4, 9) == (0, 1, 2, 3)
    options = VIDEO | dict(patch=(1, 8, 8), pos_grid=(3, 4, 4), sampled_frames=3, temporal="mean", head="gap")
    model = filled("vivit_mu", **options)
    clip = jax.random.normal(jax.random.key(0), (1, 8, 32, 32, 3))
    logits = jax.jit(lambda m, x: m(x)["logits"])
    reversed_in_time = clip.at[:, jnp.array([2, 6])].set(clip[:, jnp.array([6, 2])])
    np.testing.assert_allclose(logits(model, clip), logits(model, reversed_in_time), atol=1e-5)
    assert model.temporal is None


def test_where_and_when_the_tokens_of_each_frame_look():
    """Those of a model per frame look at nothing but their own frame."""
    model = filled("lookup_vivit_mu")
    clip = jax.random.normal(jax.random.key(0), (2, 8, 32, 32, 3))
    maps = jax.jit(lambda m, x: footprints(m, x, (2, 1)))(model, clip)
    assert maps.shape == (2, 4 * 2, 4, 4, 4)
    share = maps.sum((-2, -1)).reshape(2, 4, 2, 4)
    np.testing.assert_allclose(share, np.broadcast_to(np.eye(4)[:, None], share.shape), atol=1e-5)


SIZES = {  # frames: {compressed grid: GMACs} of the data sheet's table
    16: {(8, 3, 3): 57.1, (4, 5, 5): 61.4, (8, 5, 5): 76.9, (8, 7, 7): 107.7},
    32: {(16, 3, 3): 120.6, (8, 5, 5): 131.8, (16, 5, 5): 172.6, (16, 7, 7): 255.0},
}


@pytest.mark.parametrize("frames", SIZES)
def test_macs_of_lookupvit_on_videos(frames):
    options = dict(pos_grid=(frames // 2, 14, 14), num_classes=400, cross_impl="plain")
    model = nnx.eval_shape(lambda: create_model("lookupvit_video_b16x2", **options))
    size = (frames, 224, 224)
    for grid, gmacs in SIZES[frames].items():
        assert model.macs(size, grid) / 1e9 == pytest.approx(gmacs, abs=0.051)
    if frames == 16:
        return
    traced = trace_model(model, size, compressed=(8, 5, 5))
    assert count_products(traced) / 1e9 == pytest.approx(SIZES[frames][8, 5, 5], rel=0.02)
    assert xla_flops(traced) / 2e9 == pytest.approx(SIZES[frames][8, 5, 5], rel=0.02)


def test_stochastic_depth_does_not_rescale():
    from lookupjax.layers.regularise import drop_path

    x = jnp.ones((64, 2, 3))
    kept = drop_path(x, 0.5, Keys(0), rescale=False)
    assert set(np.unique(kept)) == {0.0, 1.0} and set(np.unique(drop_path(x, 0.5, Keys(0)))) == {0.0, 2.0}


@pytest.mark.parametrize(
    "options, complaint",
    [
        (dict(form="joined"), "form='joined' is unknown"),
        (dict(form="factorised_dot_product"), 'has no class token; use head="gap"'),
        (dict(form="factorised_dot_product", head="gap", num_heads=1), "num_heads=1 is odd"),
        (dict(sampled_frames=4), r"use patch=\(1, 8, 8\)"),
        (dict(tubelet_init="middle"), "tubelet_init='middle' is unknown"),
    ],
)
def test_user_errors(options, complaint):
    with pytest.raises(UserError, match=complaint):
        nnx.eval_shape(lambda: create_model("vivit_mu", **options))
    with pytest.raises(UserError, match="that of one frame, such as 5x5; got 2x2x2"):
        nnx.eval_shape(lambda: create_model("lookup_vivit_mu", compressed=(2, 2, 2)))
