"""Attention maps of every model: their laws, what is derived from them, and the page they are shown on."""

import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lookupjax import attention_views, create_model
from lookupjax.analysis.attention_maps import AttentionMap, Tokens, attention_maps, round_trips
from lookupjax.analysis.attention_page import binned, bins, write_page
from lookupjax.analysis.pictures import mosaic
from lookupjax.analysis.plots import attention_strips
from lookupjax.attention import create_mixer, list_mixers, record_taps
from lookupjax.attention.agent import AgentAttention
from lookupjax.attention.bra import BiLevelRoutingAttention
from lookupjax.attention.dense import dense_map
from lookupjax.attention.softmax import merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.models import MODULES, model_options, native_size
from lookupjax.models.catanet import LocalAttention
from tests.models.filled import filled

PLAIN = {"mobilenet", "regnet", "resnet"}  # nothing in them attends
CLIPS, ELSEWHERE = {"vivit", "lookup_vivit"}, {"captioner", "tokenlearner"}  # have tests of their own
UNNORMALISED = {"dependencyvit", "flowformer", "halonet", "medusa"}


def images(name: str, count: int = 2) -> np.ndarray:
    channels = model_options(f"{name}_mu")["channels"]
    return (
        np.random.default_rng(0).normal(size=(count, *native_size(f"{name}_mu"), channels)).astype(np.float32)
    )


def maps_of(name: str, **options) -> list[AttentionMap]:
    model = filled(lambda: create_model(f"{name}_mu", **options))
    return attention_maps(model, jnp.asarray(images(name)))


@pytest.mark.parametrize("name", sorted(set(MODULES) - PLAIN - CLIPS - ELSEWHERE))
def test_every_model_that_attends_shows_its_maps_on_grids_of_the_image(name):
    maps = maps_of(name)
    height, width = native_size(f"{name}_mu")
    for m in maps:
        assert m.weights.shape[0] == 2 and m.weights.shape[2:] == (m.queries.count, m.keys.count)
        assert np.isfinite(m.weights).all() and (m.weights >= 0).all()
        for side in (m.queries, m.keys):
            assert side.grid is None or side.prefix + np.prod(side.grid) == side.count
            assert side.name != "tokens" or (side.grid and side.grid[0] * width == side.grid[1] * height)
    attention = [m for m in maps if m.kind.startswith("attention")]
    if name == "dependencyvit":  # what a token sends, over heads and receivers, is the message it has left
        assert all((m.weights.sum((1, 2)) <= 1).all() for m in attention)
    elif name == "moh_vit":  # neighbours and the pooled map share one softmax
        near, far = (m.weights.sum(-1) for m in maps[:2])
        np.testing.assert_allclose(near + far, 1.0, atol=1e-5)
    elif name == "halonet":  # zeros around the map are keys, too
        assert all((m.weights.sum(-1) <= 1 + 1e-5).all() for m in attention)
    elif name == "medusa":
        assert len(maps) == 3 and all((m.weights > 0).all() and (m.weights < 1).all() for m in maps)
    elif name not in UNNORMALISED:
        for m in attention:
            sums = m.weights.sum(2 if "infuse" in m.path else 3)
            np.testing.assert_allclose(sums, 1.0, atol=1e-5, err_msg=m.path)


@pytest.mark.parametrize("name", ["davit", "agent_swin", "crossformer", "biformer"])
def test_windows_know_where_their_tokens_stand_on_maps_that_they_do_not_divide(name):
    model = filled(lambda: create_model(f"{name}_mu"))
    x = np.random.default_rng(0).normal(size=(1, 44, 28, 3)).astype(np.float32)
    first = next(m for m in attention_maps(model, jnp.asarray(x)) if m.kind == "attention")
    assert first.queries.grid == first.keys.grid == (11, 7)
    assert (first.weights.sum(-1) < 1 + 1e-5).all() and (first.weights.sum(-1) > 0).all()


GRID, WIDTH = (4, 6), 24
DIRECT = {  # mixers whose output is exactly out(map values), but for a convolution of the values that is cut
    "softmax": {}, "moh": {}, "flow": {}, "reversed": {}, "irpe": {}, "relative": dict(size=8),
    "window": dict(window=(2, 3)), "lsda": dict(group=2, kind="long"), "halo": dict(block=2, halo=1),
    "bra": dict(regions=2, topk=2, local_kernel=0), "contmix": dict(kernel_size=3, small_kernel=3),
    "agent": dict(agents=4, window=GRID), "channel": {},
}  # fmt: skip


def test_the_mixers_with_a_direct_map_are_all_but_the_one_without_queries():
    assert set(DIRECT) == set(list_mixers()) - {"ulsam"}


@pytest.mark.parametrize("name", DIRECT)
def test_the_map_times_the_values_is_the_output(name):
    mixer = filled(lambda: create_mixer(name, WIDTH, 4, rngs=Keys(0), **DIRECT[name]))
    if isinstance(mixer, AgentAttention):
        mixer.local.kernel[...], mixer.local.bias[...] = (
            0 * mixer.local.kernel[...],
            0 * mixer.local.bias[...],
        )
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 24, WIDTH)), jnp.float32)
    names = ("weights", "map", "places", "gates")

    @jax.jit
    def run(x):
        out, taps = record_taps(mixer, x, grid=GRID, names=names)
        if name == "contmix":
            values = mixer.v(x.reshape(2, *GRID, WIDTH)).reshape(2, 24, 2, 4, -1).transpose(0, 2, 3, 1, 4)
            mixed = jnp.einsum("bhmn,bhnc->bmhc", taps["/map"], values.reshape(2, 8, 24, -1)).reshape(x.shape)
            return out, mixer.out(mixed.reshape(2, *GRID, WIDTH)).reshape(x.shape)
        if name == "channel":
            values = split_heads(mixer.q(x), 4)
            return out, mixer.out(merge_heads(jnp.einsum("bhij,bhnj->bhni", taps["/weights"], values)))
        weights = taps.get("/map", taps["/weights"])
        if "/places" in taps:
            weights = dense_map(weights, taps["/places"], taps["/places"], (24, 24))
        mixed = jnp.einsum("bhmn,bhnc->bhmc", weights, split_heads(mixer.v(x), 4))
        if "/gates" in taps:
            mixed = mixed * taps["/gates"].swapaxes(1, 2)[..., None]
        return out, mixer.out(merge_heads(mixed))

    out, expected = run(x)
    np.testing.assert_allclose(out, expected, atol=1e-5 * float(np.abs(out).max()))


def test_pooled_keys_of_bi_level_routing_lie_on_their_own_grid():
    options = dict(regions=2, topk=4, local_kernel=0, kv_pool="adaptive_avg", kv_size=1)
    mixer = filled(lambda: BiLevelRoutingAttention(WIDTH, 4, rngs=Keys(0), **options))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 24, WIDTH)), jnp.float32)
    out, taps = jax.jit(lambda x: record_taps(mixer, x, grid=GRID, names=("map",)))(x)
    cells = mixer.v(x).reshape(2, 2, 2, 3, WIDTH).mean((1, 3)).reshape(1, 4, WIDTH)  # 2x2 regions of 2x3
    expected = mixer.out(merge_heads(taps["/map"] @ split_heads(cells, 4)))
    np.testing.assert_allclose(out, expected, atol=1e-5 * float(np.abs(out).max()))


def test_overlapping_windows_average():
    layer = filled(lambda: LocalAttention(8, qk_dim=8, mlp_dim=8, num_heads=1, window=5, rngs=Keys(0)))
    x = jnp.zeros((1, 8, 8, 8))
    _, taps = jax.jit(lambda x: record_taps(layer, x, names=("weights", "places")))(x)
    times = np.bincount(np.asarray(taps["/places"]).astype(int).ravel(), minlength=65)[1:]
    assert taps["/places"].shape == (1, 4, 25) and set(times) == {1, 2, 4}


def test_rollout_and_round_trip():
    maps = {m.path: m for m in maps_of("dcal", depth=3)}
    total = np.eye(17)[None]
    for i in range(3):
        total = (0.5 * np.eye(17)[None] + 0.5 * maps[f"trunk/blocks/{i}/attn"].weights.mean(1)) @ total
    np.testing.assert_allclose(maps["trunk/blocks/*/attn"].weights[:, 0], total, atol=1e-5)

    maps = maps_of("lookupvit")
    by_path = {m.path: m.weights for m in maps if m.kind != "round trip"}
    trip = next(m for m in maps if m.kind == "round trip" and m.path == "blocks/1/cross")
    gathered, written = by_path["blocks/1/cross/gather"], by_path["blocks/1/cross/infuse"]
    np.testing.assert_allclose(trip.weights, written @ gathered, atol=1e-6)
    assert trip.queries.grid == trip.keys.grid == (8, 8) and len(round_trips(maps)) == 2


def test_pruned_layers_are_shown_over_all_patches():
    maps = maps_of("dependencyvit", depth=3, prune_layers=(2,), prune_ratio=0.5)
    last = maps[2].weights
    assert last.shape[-2:] == (16, 16)
    assert ((last.sum((1, 2)) > 0).sum(-1) == 8).all()  # half of the patches still send


def test_merged_tokens_are_spread_over_the_patches_that_they_hold():
    model = filled(lambda: create_model("tome_mu", depth=3))
    x = jnp.asarray(images("tome"))
    maps = {m.path: m for m in attention_maps(model, x)}
    names = ("weights", "v", "source")
    _, taps = jax.jit(lambda x: record_taps(model, x, names=names))(x)
    for block, key in enumerate(("/source", "/source/1", "/source/2")):
        m, values, source = maps[f"blocks/{block}/attn"], taps[f"blocks/{block}/attn/v"], taps[key]
        assert m.queries == m.keys == Tokens("tokens", 65, 1, (8, 8))
        assert source.shape[1] == 65 - 5 * block
        mixed = jnp.einsum("bhts,bhsc->bhtc", taps[f"blocks/{block}/attn/weights"], values)
        expected = jnp.einsum("btn,bhtc->bhnc", source, mixed)
        every = jnp.einsum("btn,bhtc->bhnc", source, values)  # of all patches, merged ones sharing theirs
        np.testing.assert_allclose(np.einsum("bhqk,bhkc->bhqc", m.weights, every), expected, atol=1e-5)
    assert "blocks/*/attn" in maps  # the rollout
    pooled = maps_of("tome", head="map")
    assert next(m for m in pooled if m.path.startswith("map")).keys.grid == (8, 8)


@pytest.mark.parametrize("fuser", [False, True])
def test_learned_tokens_gather_patches_and_have_no_place(fuser):
    maps = {m.path: m for m in maps_of("tokenlearner", fuser=fuser)}
    patches, learned = Tokens("tokens", 64, 0, (8, 8)), Tokens("learned tokens", 4)
    sides = {path: (m.queries, m.keys) for path, m in maps.items()}
    expected = {"blocks/0/attn": (patches, patches), "learners/0": (learned, patches)}
    expected |= {"blocks/1/attn": (learned, learned)} | ({"fusers/0": (patches, learned)} if fuser else {})
    assert sides == expected and list(sides) == list(expected)
    for path in expected:
        if path != "fusers/0":  # sigmoids
            np.testing.assert_allclose(maps[path].weights.sum(-1), 1.0, atol=1e-5)


VIDEO = dict(depth=2, temporal_depth=1)
CLIP, PER_FRAME = (4, 4, 4), Tokens("frames", 5, 1, (4, 1, 1))


@pytest.mark.parametrize(
    "form", ["joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"]
)
def test_maps_of_a_clip_lie_on_its_frames(form):
    head = "token" if form in ("joint", "factorised_encoder") else "gap"
    maps = {m.path: m for m in maps_of("vivit", form=form, head=head, **VIDEO)}
    prefix = {"joint": 1, "factorised_encoder": 4}.get(form, 0)
    for path, m in maps.items():
        np.testing.assert_allclose(m.weights.sum(-1), 1.0, atol=1e-5)
        assert len(m.weights) == 2 and m.weights.shape[2:] == (m.queries.count, m.keys.count)
        if path.startswith("temporal"):
            assert m.queries == m.keys == PER_FRAME
        else:
            assert (m.queries.prefix, m.queries.grid) == (prefix, CLIP) and m.queries == m.keys
    whole = maps["blocks/1/attn"].weights[:, :, prefix:, prefix:].reshape(2, -1, 4, 16, 4, 16)
    apart = [whole[:, :, f, :, g].any() for f in range(4) for g in range(4) if f != g]
    if form == "factorised_encoder":
        assert not any(apart) and "blocks/*/attn" in maps
        frame = [
            maps["blocks/1/attn"].weights[:, :, f, [f, *range(4 + 16 * f, 20 + 16 * f)]] for f in range(4)
        ]
        np.testing.assert_allclose(np.stack(frame).sum(-1), 1.0, atol=1e-5)  # a class token reads its frame
        assert maps["blocks/1/attn"].queries.names[3] == "class token of frame 4"
    elif form == "factorised_self_attention":
        assert not any(apart)
        time = maps["blocks/1/time_attn"].weights.reshape(2, -1, 4, 16, 4, 16)
        assert not any(time[:, :, :, i, :, j].any() for i in range(16) for j in range(16) if i != j)
        assert (time[:, :, :, 3, :, 3] > 0).all()
    else:
        assert all(apart)


def test_maps_of_frames_are_those_of_the_frames_alone():
    model = filled(lambda: create_model("vivit_mu"))
    clips = jnp.asarray(images("vivit"))
    m = next(m for m in attention_maps(model, clips) if m.path == "blocks/0/attn")
    _, taps = jax.jit(lambda x: record_taps(model, x))(clips)
    alone = taps["blocks/0/attn/weights"].reshape(2, 4, -1, 17, 17)
    at = [2, *range(4 + 16 * 2, 4 + 16 * 3)]  # the third frame's class token and patches
    np.testing.assert_array_equal(m.weights[1][:, at][:, :, at], alone[1, 2])


def test_a_lookupvit_per_frame_shows_its_tokens_on_the_clip():
    maps = {m.path: m for m in maps_of("lookup_vivit", temporal_depth=1)}
    lookup, gather = Tokens("lookup tokens", 64, 0, CLIP), maps["frames/blocks/0/cross/gather"]
    frames, *grid = gather.queries.grid
    assert gather.keys == lookup and frames == 4 and gather.queries.name == "compressed tokens"
    per_frame = np.prod(grid)
    whole = gather.weights.reshape(2, -1, 4, per_frame, 4, 16)
    assert not any(whole[:, :, f, :, g].any() for f in range(4) for g in range(4) if f != g)
    np.testing.assert_allclose(gather.weights.sum(-1), 1.0, atol=1e-5)
    trip = next(m for m in maps.values() if m.kind == "round trip")
    assert trip.queries.grid == trip.keys.grid == CLIP
    assert maps["temporal/blocks/0/attn"].keys == PER_FRAME


@pytest.mark.parametrize(
    "encoder, seen",
    [
        ("lookupvit_mu", ("compressed tokens", 0, None)),
        ("tome_mu", ("tokens", 0, (8, 8))),
        ("tokenlearner_mu", ("learned tokens", 0, None)),
    ],
)
@pytest.mark.parametrize("form", ["cross", "prefix"])
def test_words_of_a_caption_read_image_tokens(encoder, seen, form):
    if form == "prefix" and encoder != "tome_mu":
        return
    model = filled(lambda: create_model("captioner_mu", encoder=encoder, decoder=dict(form=form)))
    x, text = jnp.asarray(images("lookupvit", 1)), jnp.asarray([[1, 5, 9, 7]])
    maps = {m.path: m for m in attention_maps(model, x, text=text, derived=False)}
    alone = attention_maps(model.encoder, x, derived=False)
    for m in alone:  # the encoder's maps are those that it has by itself
        same = maps.pop(f"encoder/{m.path}")
        assert (same.queries, same.keys, same.kind) == (m.queries, m.keys, m.kind)
        np.testing.assert_allclose(same.weights, m.weights, atol=1e-6)
    for m in maps.values():
        assert m.queries == Tokens("words", 4)
        np.testing.assert_allclose(m.weights.sum(-1), 1.0, atol=1e-5)
    words = maps["decoder/blocks/0/attn"]
    if form == "cross":
        assert words.keys == words.queries and not np.triu(words.weights[0, 0], 1).any()
        image = maps["decoder/blocks/0/cross"].keys
        assert (image.name, image.prefix) == seen[:2]
        assert image.grid == (model.encoder.compressed if hasattr(model.encoder, "compressed") else seen[2])
    else:
        assert words.keys.grid == (8, 8) and words.keys.prefix == 4 and words.keys.names[3] == "word 4"
        assert not np.triu(words.weights[0, 0, :, :4], 1).any()


def test_nothing_to_show_is_an_error():
    with pytest.raises(UserError, match="ResNet has no attention that could be shown"):
        maps_of("resnet")


def test_fine_grids_are_binned_and_clips_laid_out_in_frames():
    tokens = Tokens("tokens", 1 + 6 * 6, 1, (6, 6))
    cell, side = bins(tokens, 3)
    assert side["grid"] == [3, 3] and side["prefix"] == 1
    weights = np.random.default_rng(0).dirichlet(np.ones(37), (2, 37)).astype(np.float32)
    small = binned(weights, cell, cell, (10, 10))
    np.testing.assert_allclose(small.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(small[0, 0, 1], weights[0, 0, [1, 2, 7, 8]].sum(), rtol=1e-5)

    frames = np.arange(3 * 2 * 2).reshape(3, 2, 2, 1)
    cell, side = bins(Tokens("tokens", 12, 0, (3, 2, 2)), 7)
    np.testing.assert_array_equal(mosaic(frames, 3).ravel()[cell], np.arange(12))
    assert side["grid"] == [4, 4]


def test_strips_show_every_compressed_token_over_the_frames(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "strips.png"
    maps = random.dirichlet(np.ones(32), 4).reshape(4, 2, 4, 4)
    attention_strips(random.normal(size=(4, 16, 16, 1)), "a clip", maps, (1, 2, 2), path)
    with Image.open(path) as picture:
        assert picture.width > picture.height and len(picture.convert("RGB").getcolors(1 << 20)) > 100


CLICK = """<script>
addEventListener("load", () => setTimeout(() => {
  const box = document.querySelector("#asks").getBoundingClientRect();
  document.querySelector("#heads").children[2].click();
  document.querySelector("#asks").dispatchEvent(new MouseEvent("click", {
    clientX: box.left + 0.99 * box.width, clientY: box.top + 0.01 * box.height }));
  document.body.dataset.said = document.querySelector("#say").textContent;
}, 500));
</script>"""


def a_map() -> AttentionMap:
    weights = np.random.default_rng(0).dirichlet(np.ones(9), (1, 2, 9)).astype(np.float32)
    tokens = Tokens("tokens", 9, 0, (3, 3))
    return AttentionMap("blocks/0/attn", "attention", weights, tokens, tokens)


def test_the_page_needs_no_network_and_answers_a_click(tmp_path):
    m, path = a_map(), tmp_path / "page.html"
    write_page([m], [np.zeros((6, 6, 3))], ["black </script>"], "Attention", path)
    text = path.read_text()
    assert not re.search(r"(src|href)=|https?:|@import|url\(", text.split("const DATA")[0])
    data = json.loads(re.search(r"const DATA = (.*);\n", text)[1])
    assert data["views"][0]["heads"] == 2 and data["titles"] == ["black </script>"]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return
    path.write_text(text.replace("</html>", CLICK + "</html>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    dom = subprocess.run(
        [chromium, *options, path.as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    said = re.search(r'data-said="([^"]*)"', dom)[1]
    row = m.weights[0, 1, 2]  # head 2, the token of the first row and last column
    place = divmod(int(row.argmax()), 3)
    assert "head 2: row 1, column 3 reads weights that sum to 1.00" in said
    assert f"Largest: {row.max():.2f} at row {place[0] + 1}, column {place[1] + 1}." in said


def test_the_command_writes_pictures_and_a_page(tmp_path, capsys):
    picture, out = tmp_path / "leaf.png", tmp_path / "out"
    Image.fromarray(np.arange(48 * 48 * 3).astype(np.uint8).reshape(48, 48, 3)).save(picture)
    assert (
        attention_views.main(["--model=lookupvit_mu", str(picture), f"--out={out}", "--compressed=2x2"]) == 0
    )
    names = {"leaf_layers", "leaf_rollout", "leaf_round_trip", "leaf_footprints"}
    assert {p.name for p in out.iterdir()} == {"attention.html", *(f"{n}.png" for n in names)}
    assert "random weights" in capsys.readouterr().out
    for arguments, message in (
        (["--model=vit_mu", "--compressed=2x2"], "vit_mu has no compressed tokens"),
        (["--model=moh_dit_mu"], "moh_dit_mu takes 4 channels"),
    ):
        with pytest.raises(UserError, match=message):
            attention_views.main([*arguments, str(picture), f"--out={out}"])
