"""Published weights: every npz layout, timm's state dicts, hybrids, resizing, and honest reports.

The files are fabricated; what the models must give on them is computed here in NumPy, float64, from the
arrays' published names alone.
"""

import importlib
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from scipy.ndimage import zoom
from scipy.special import erf, softmax

from lookupjax import create_model, parity
from lookupjax.analysis.counts import count_products, trace_model
from lookupjax.config import default_config
from lookupjax.errors import UserError
from lookupjax.interop import vit
from lookupjax.interop.weights import load_weights, read_weights
from lookupjax.layers.position import resize_grid
from lookupjax.models import MODULES
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.init import initialise
from lookupjax.training.sharding import make_mesh

DIM, HEADS, DEPTH, PATCH, CLASSES, GRID = 32, 2, 2, 4, 5, (3, 3)
OPTIONS = dict(
    dim=DIM, depth=DEPTH, num_heads=HEADS, patch=(PATCH, PATCH), num_classes=CLASSES, pos_grid=GRID
)
OLD = {"attention": "MultiHeadDotProductAttention_1", "norm": "LayerNorm_2", "mlp": "MlpBlock_3"}
LINEN = {"attention": "MultiHeadDotProductAttention_0", "norm": "LayerNorm_1", "mlp": "MlpBlock_0"}


def draw(seed=0, **shapes):
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def block_shapes(names):
    d = DIM // HEADS
    attention, mlp = names["attention"], names["mlp"]
    shapes = {f"{n}/{leaf}": (DIM,) for n in ("LayerNorm_0", names["norm"]) for leaf in ("scale", "bias")}
    for part in ("query", "key", "value"):
        shapes |= {f"{attention}/{part}/kernel": (DIM, HEADS, d), f"{attention}/{part}/bias": (HEADS, d)}
    shapes |= {f"{attention}/out/kernel": (HEADS, d, DIM), f"{attention}/out/bias": (DIM,)}
    shapes |= {f"{mlp}/Dense_0/kernel": (DIM, 4 * DIM), f"{mlp}/Dense_0/bias": (4 * DIM,)}
    return shapes | {f"{mlp}/Dense_1/kernel": (4 * DIM, DIM), f"{mlp}/Dense_1/bias": (DIM,)}


def google_file(names=OLD, *, token=True, resnet=None, representation=False):
    """Arrays of a small model in the layout of the AugReg files."""
    shapes = {"embedding/kernel": (PATCH, PATCH, 3, DIM), "embedding/bias": (DIM,)}
    if resnet is not None:
        c = 32
        shapes = {
            "conv_root/kernel": (7, 7, 3, c),
            "gn_root/scale": (1, 1, 1, c),
            "gn_root/bias": (1, 1, 1, c),
        }
        for s, units in enumerate(resnet):
            width = 32 * 2**s
            for u in range(units):
                at = f"block{s + 1}/unit{u + 1}/"
                parts = {"1": (1, 1, c, width), "2": (3, 3, width, width), "3": (1, 1, width, 4 * width)}
                parts |= {"_proj": (1, 1, c, 4 * width)} if u == 0 else {}
                for part, shape in parts.items():
                    shapes[f"{at}conv{part}/kernel"] = shape
                    shapes |= {f"{at}gn{part}/{leaf}": (1, 1, 1, shape[-1]) for leaf in ("scale", "bias")}
                c = 4 * width
        shapes |= {"embedding/kernel": (1, 1, c, DIM), "embedding/bias": (DIM,)}
    rows = math.prod(GRID) + token
    shapes["Transformer/posembed_input/pos_embedding"] = (1, rows, DIM)
    if token:
        shapes["cls"] = (1, 1, DIM)
    for i in range(DEPTH):
        shapes |= {f"Transformer/encoderblock_{i}/{k}": v for k, v in block_shapes(names).items()}
    shapes |= {f"Transformer/encoder_norm/{leaf}": (DIM,) for leaf in ("scale", "bias")}
    width = 24 if representation else DIM
    if representation:
        shapes |= {"pre_logits/kernel": (DIM, width), "pre_logits/bias": (width,)}
    return draw(**shapes | {"head/kernel": (width, CLASSES), "head/bias": (CLASSES,)})


def layer_norm(x, a, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * a[f"{name}/scale"] + a[f"{name}/bias"]


def group_norm(x, a, name, eps):
    b, h, w, c = x.shape
    g = x.reshape(b, h * w, 32, c // 32)
    g = g - g.mean((1, 3), keepdims=True)
    g = g / np.sqrt(np.square(g).mean((1, 3), keepdims=True) + eps)
    return g.reshape(x.shape) * a[f"{name}/scale"].reshape(-1) + a[f"{name}/bias"].reshape(-1)


def windows(x, size, stride, fill):
    """Every window of a SAME convolution: (b, h', w', size, size, c)."""
    pads = []
    for n in x.shape[1:3]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.moveaxis(view, 3, -1)


def std_conv(x, kernel, stride=1, timm=False):
    k = kernel.astype(np.float64)
    k = k - k.mean((0, 1, 2))
    k = k / (np.sqrt(k.var((0, 1, 2)) + 1e-8) if timm else k.std((0, 1, 2)) + 1e-5)
    return np.einsum("bhwijc,ijcd->bhwd", windows(x, kernel.shape[0], stride, 0.0), k)


def resnet_forward(x, a, timm=False):
    def step(x, conv, norm, stride=1):
        y = std_conv(x, a[f"{conv}/kernel"], stride, timm)
        return group_norm(y, a, norm, 1e-5 if timm else 1e-6)

    x = np.maximum(step(x, "conv_root", "gn_root", 2), 0)
    x = windows(x, 3, 2, -np.inf).max((3, 4))
    for name in sorted({k.rpartition("/conv1")[0] for k in a if "/conv1/" in k}):
        stride = 2 if name[5] != "1" and name.endswith("unit1") else 1
        y = np.maximum(step(x, f"{name}/conv1", f"{name}/gn1"), 0)
        y = np.maximum(step(y, f"{name}/conv2", f"{name}/gn2", stride), 0)
        y = step(y, f"{name}/conv3", f"{name}/gn3")
        if f"{name}/conv_proj/kernel" in a:
            x = step(x, f"{name}/conv_proj", f"{name}/gn_proj", stride)
        x = np.maximum(x + y, 0)
    return x


def forward(a, x, *, gelu="tanh", mean_first=False, timm=False):
    """Logits of a file in the old layout."""
    x = x.astype(np.float64)
    if "conv_root/kernel" in a:
        x = resnet_forward(x, a, timm)
    p = a["embedding/kernel"].shape[0]
    b, h, w, c = x.shape
    x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
    x = x @ a["embedding/kernel"].reshape(-1, DIM) + a["embedding/bias"]
    if "cls" in a:
        x = np.concatenate([np.repeat(a["cls"], b, 0), x], 1)
    x = x + a["Transformer/posembed_input/pos_embedding"]
    for i in range(DEPTH):
        at = f"Transformer/encoderblock_{i}/"
        y = layer_norm(x, a, at + "LayerNorm_0")
        q, k, v = (
            np.einsum("bnd,dhc->bhnc", y, a[f"{at}{OLD['attention']}/{part}/kernel"])
            + a[f"{at}{OLD['attention']}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(DIM // HEADS), -1)
        out = np.einsum("bhnc,hcd->bnd", weights @ v, a[f"{at}{OLD['attention']}/out/kernel"])
        x = x + out + a[f"{at}{OLD['attention']}/out/bias"]
        y = layer_norm(x, a, at + OLD["norm"])
        y = y @ a[f"{at}{OLD['mlp']}/Dense_0/kernel"] + a[f"{at}{OLD['mlp']}/Dense_0/bias"]
        if gelu == "tanh":
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        else:
            y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
        x = x + y @ a[f"{at}{OLD['mlp']}/Dense_1/kernel"] + a[f"{at}{OLD['mlp']}/Dense_1/bias"]
    if mean_first:
        x = layer_norm(x.mean(1), a, "Transformer/encoder_norm")
    else:
        x = layer_norm(x, a, "Transformer/encoder_norm")
        x = x[:, 0] if "cls" in a else x.mean(1)
    if "pre_logits/kernel" in a:
        x = np.tanh(x @ a["pre_logits/kernel"] + a["pre_logits/bias"])
    return x @ a["head/kernel"] + a["head/bias"]


def images(size, seed=1):
    return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def saved(arrays, path):
    np.savez(path, **arrays)
    return path


def logits(model, x):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda x: model(x)["logits"])(x))


def check(model, arrays, x, **kwargs):
    expected = forward(arrays, x, **kwargs)
    np.testing.assert_allclose(logits(model, x), expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


SQUARE = images((12, 12))


def test_original_files_with_pre_logits(tmp_path, capsys):
    arrays = google_file(representation=True)
    path = saved(arrays, tmp_path / "a.npz")
    model = create_model("vit_mu", **OPTIONS, representation_size=24, weights=path)
    assert "loaded 43 parameters; missing 0; unexpected 0; resized 0" in capsys.readouterr().err
    check(model, arrays, SQUARE)


def renamed(arrays, how):
    """The same model in another published layout."""
    if how == "old":
        return arrays
    swap = {OLD[k]: LINEN[k] for k in OLD}
    linen = {"/".join(swap.get(part, part) for part in name.split("/")): v for name, v in arrays.items()}
    if how == "target":
        return {f"opt/target/{k}": v for k, v in linen.items()} | {"opt/state/step": np.zeros(())}
    table = linen.pop("Transformer/posembed_input/pos_embedding")
    linen["pos_embedding"] = table  # big_vision
    if how == "params":
        return {f"params/{k}": v for k, v in linen.items()}
    first = "Transformer/encoderblock_0/"
    parts = [k.removeprefix(first) for k in linen if k.startswith(first)]
    scanned = {k: v for k, v in linen.items() if "encoderblock_" not in k}
    for part in parts:
        stack = np.stack([linen[f"Transformer/encoderblock_{i}/{part}"] for i in range(DEPTH)])
        scanned[f"Transformer/encoderblock/{part}"] = stack
    return {f"params/img/{k}": v for k, v in scanned.items()}


def test_every_layout_is_the_same_model(tmp_path):
    arrays = google_file(token=False)
    models = []
    for how in ("old", "target", "params", "scanned"):
        path = saved(renamed(arrays, how), tmp_path / f"{how}.npz")
        models.append(create_model("vit_mu", **OPTIONS, head="gap", weights=path))
    check(models[0], arrays, SQUARE)
    for other in models[1:]:
        ours, theirs = vit.export(models[0]), vit.export(other)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_npz_file_round_trips(tmp_path):
    for arrays, options in (
        (google_file(), {}),
        (google_file(token=False), dict(head="gap")),
        (google_file(resnet=(1, 1)), dict(resnet=(1, 1), resnet_width=32, patch=(1, 1))),
    ):
        model = create_model("vit_mu", **OPTIONS | options, weights=saved(arrays, tmp_path / "a.npz"))
        again = vit.export(model)
        assert again.keys() == arrays.keys()
        for name, value in arrays.items():
            # old files keep GroupNorm's vectors as (1, 1, 1, d)
            np.testing.assert_array_equal(again[name].reshape(value.shape), value, err_msg=name)
    with pytest.raises(UserError, match="no place for registers"):
        vit.export(create_model("vit_mu", registers=1))


def test_hybrids(tmp_path):
    arrays = google_file(resnet=(1, 2))
    # kernels so small that the two forms' epsilons differ by a percent
    arrays = {k: 1e-3 * v if "/conv" in k or k.startswith("conv") else v for k, v in arrays.items()}
    path = saved(arrays, tmp_path / "r.npz")
    options = OPTIONS | dict(resnet=(1, 2), resnet_width=32, patch=(1, 1))
    model = create_model("vit_mu", **options, weights=path)
    check(model, arrays, images((23, 21)))  # odd sizes: padding is asymmetric

    state = timm_names(arrays)
    path = saved(state, tmp_path / "t.npz")
    model = create_model("vit_mu", **options, resnet_form="timm", gelu="exact", weights=path)
    check(model, arrays, images((23, 21)), timm=True, gelu="exact")


def timm_names(a):
    """The state dict that timm's own converter would make of an npz file in the old layout."""
    state = {
        "cls_token": a["cls"],
        "pos_embed": a["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": a["embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": a["embedding/bias"],
        "norm.weight": a["Transformer/encoder_norm/scale"],
        "norm.bias": a["Transformer/encoder_norm/bias"],
        "head.weight": a["head/kernel"].T,
        "head.bias": a["head/bias"],
    }
    for i in range(DEPTH):
        at, to, mha = f"Transformer/encoderblock_{i}/", f"blocks.{i}.", OLD["attention"]
        parts = [a[f"{at}{mha}/{p}/kernel"].reshape(DIM, DIM).T for p in ("query", "key", "value")]
        state[f"{to}attn.qkv.weight"] = np.concatenate(parts)
        biases = [a[f"{at}{mha}/{p}/bias"].reshape(-1) for p in ("query", "key", "value")]
        state[f"{to}attn.qkv.bias"] = np.concatenate(biases)
        state[f"{to}attn.proj.weight"] = a[f"{at}{mha}/out/kernel"].reshape(DIM, DIM).T
        state[f"{to}attn.proj.bias"] = a[f"{at}{mha}/out/bias"]
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", OLD["norm"])):
            state[f"{to}{ours}.weight"] = a[f"{at}{theirs}/scale"]
            state[f"{to}{ours}.bias"] = a[f"{at}{theirs}/bias"]
        for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            state[f"{to}mlp.{ours}.weight"] = a[f"{at}{OLD['mlp']}/{theirs}/kernel"].T
            state[f"{to}mlp.{ours}.bias"] = a[f"{at}{OLD['mlp']}/{theirs}/bias"]
    for name, value in a.items():
        stage = name.split("/")
        to = "patch_embed.backbone.stem."
        if name.startswith("block"):
            to = f"patch_embed.backbone.stages.{int(stage[0][5:]) - 1}.blocks.{int(stage[1][4:]) - 1}."
        if "conv" in name and value.ndim == 4:
            part = {"conv_root": "conv", "conv_proj": "downsample.conv"}.get(stage[-2], stage[-2])
            state[f"{to}{part}.weight"] = value.transpose(3, 2, 0, 1)
        elif "gn" in name:
            part = {"gn_root": "norm", "gn_proj": "downsample.norm"}.get(stage[-2], "norm" + stage[-2][2:])
            kind = {"scale": "weight", "bias": "bias"}[stage[-1]]
            state[f"{to}{part}.{kind}"] = value.reshape(-1)
    return state


def test_timm_safetensors_and_the_gelu_is_live(tmp_path):
    from safetensors.numpy import save_file

    arrays = google_file()
    path = tmp_path / "model.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in timm_names(arrays).items()}, path)
    model = create_model("vit_mu", **OPTIONS, gelu="exact", weights=path)
    check(model, arrays, SQUARE, gelu="exact")
    difference = np.abs(logits(model, SQUARE) - forward(arrays, SQUARE)).max()
    assert 1e-5 < difference < 1e-1

    gap = google_file(token=False)
    state = timm_names(gap | {"cls": gap["embedding/bias"]})
    del state["cls_token"]
    state = {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v for k, v in state.items()}
    path = saved(state, tmp_path / "gap.npz")
    model = create_model("vit_mu", **OPTIONS, head="gap", pool="mean_norm", gelu="exact", weights=path)
    check(model, gap, SQUARE, gelu="exact", mean_first=True)


def test_registers_attention_pooling_and_no_embed_class(tmp_path):
    """timm's forms that have no counterpart in the npz files: loaded values by name."""
    state = timm_names(google_file())
    random = draw(reg_token=(1, 2, DIM), pos_embed=(1, 3 + 9, DIM), latent=(1, 1, DIM), kv=(2 * DIM, DIM))
    both = state | {"reg_token": random["reg_token"], "pos_embed": random["pos_embed"]}
    model = create_model("vit_mu", **OPTIONS, registers=2, weights=saved(both, tmp_path / "a.npz"))
    table = random["pos_embed"][0]
    np.testing.assert_array_equal(model.registers[...], random["reg_token"][0] + table[1:3])
    np.testing.assert_array_equal(model.cls_pos[...], table[0])
    np.testing.assert_array_equal(model.pos[...].reshape(9, DIM), table[3:])
    bare = both | {"pos_embed": table[None, 3:]}
    path = saved(bare, tmp_path / "b.npz")
    model = create_model("vit_mu", **OPTIONS, registers=2, pos_token=False, weights=path)
    np.testing.assert_array_equal(model.registers[...], random["reg_token"][0])
    np.testing.assert_array_equal(model.pos[...].reshape(9, DIM), table[3:])
    with pytest.raises(UserError, match="use pos_token=False"):
        create_model("vit_mu", **OPTIONS, registers=2, weights=path)

    pooled = {k: v for k, v in state.items() if k != "cls_token"} | {"pos_embed": table[None, 3:]}
    pooled |= {"attn_pool.latent": random["latent"], "attn_pool.kv.weight": random["kv"]}
    pooled |= {"attn_pool.kv.bias": random["kv"][:, 0]}
    pooled |= {f"attn_pool.{k[9:]}": v for k, v in state.items() if k.startswith("blocks.0.mlp")}
    pooled |= {f"attn_pool.norm.{k}": state[f"norm.{k}"] for k in ("weight", "bias")}
    for name in ("q", "proj"):
        pooled |= {f"attn_pool.{name}.{k}": state[f"blocks.0.attn.proj.{k}"] for k in ("weight", "bias")}
    model = create_model("vit_mu", **OPTIONS, head="map", weights=saved(pooled, tmp_path / "c.npz"))
    np.testing.assert_array_equal(model.map.attn.v.kernel[...], random["kv"][DIM:].T)
    np.testing.assert_array_equal(model.map.attn.k.bias[...], random["kv"][:DIM, 0])
    assert logits(model, SQUARE).shape == (2, CLASSES)


@pytest.mark.parametrize("method", ["zoom", "cubic", "bilinear"])
def test_positions_meet_another_grid(method, tmp_path):
    arrays = google_file()
    path = saved(arrays, tmp_path / "a.npz")
    options = OPTIONS | dict(pos_grid=(5, 2), pos_resize=method)
    with pytest.raises(UserError, match=r"resized 1: pos \(3x3 -> 5x2\); strict=False"):
        create_model("vit_mu", **options, weights=path)
    model = create_model("vit_mu", **options, weights=path, strict=False)
    table = arrays["Transformer/posembed_input/pos_embedding"][0]
    np.testing.assert_array_equal(model.cls_pos[...], table[0])
    square = table[1:].reshape(3, 3, DIM)
    np.testing.assert_array_equal(model.pos[...], resize_grid(jnp.asarray(square), (5, 2), method=method))
    if method == "zoom":
        np.testing.assert_allclose(model.pos[...], zoom(square, (5 / 3, 2 / 3, 1), order=1), atol=1e-6)


def test_a_report_of_what_does_not_fit(tmp_path, capsys):
    arrays = google_file() | {"head/kernel": np.zeros((DIM, 21843), np.float32), "stray": np.zeros(3)}
    del arrays["Transformer/encoder_norm/bias"]
    path = saved(arrays, tmp_path / "a.npz")
    with pytest.raises(UserError) as caught:
        create_model("vit_mu", **OPTIONS, weights=path)
    for part in (
        "missing 2: head/kernel",
        "norm/bias (the reference has no parameter",
        "unexpected 1: stray",
    ):
        assert part in str(caught.value)
    model = create_model("vit_mu", **OPTIONS)
    before = np.asarray(model.head.kernel[...])
    report = load_weights(model, path, strict=False)
    assert set(report.missing) == {"head/kernel", "norm/bias"} and not report.complete
    np.testing.assert_array_equal(model.head.kernel[...], before)
    np.testing.assert_array_equal(model.embed.kernel[...], arrays["embedding/kernel"])
    assert "loaded 39 parameters" in capsys.readouterr().err


def test_files_that_are_refused(tmp_path):
    pickled, damaged = tmp_path / "a.pth", tmp_path / "a.safetensors"
    pickled.write_bytes(b"x")
    damaged.write_bytes(b"x" * 50)
    objects = tmp_path / "b.npz"
    np.savez(objects, a=np.array([{}], dtype=object))
    for path, complaint in (
        (pickled, "never opened"),
        (damaged, "no readable .safetensors"),
        (objects, "pickle"),
        (tmp_path / "c.npz", "no such file"),
    ):
        with pytest.raises(UserError, match=complaint):
            read_weights(path)


def test_lookupvit_starts_from_a_vit(tmp_path):
    arrays = google_file()
    path = saved(arrays, tmp_path / "a.npz")
    options = {k: v for k, v in OPTIONS.items() if k != "pos_grid"} | dict(pos_grid=(6, 6), compressed=(2, 2))
    model = create_model("lookupvit_mu", **options)
    before = np.asarray(model.blocks[0].cross.gather.q.kernel[...])
    report = load_weights(model, path, strict=False)
    source = create_model("vit_mu", **OPTIONS, weights=path)
    assert report.resized == {"pos_lookup": "3x3 -> 6x6"}
    np.testing.assert_array_equal(model.embed.kernel[...], source.embed.kernel[...])
    for ours, theirs in zip(model.blocks, source.blocks):
        for part in ("attn_norm", "attn", "mlp_norm", "mlp"):
            new, old = (jax.tree.leaves(getattr(b, part)) for b in (ours, theirs))
            assert all(np.array_equal(a, b) for a, b in zip(new, old))
    np.testing.assert_array_equal(model.final_norm_p.scale[...], source.norm.scale[...])
    np.testing.assert_array_equal(model.blocks[0].cross.gather.q.kernel[...], before)
    assert {"head_p/kernel", "final_norm_l/scale", "blocks/0/cross/gather/q/kernel"} <= set(report.missing)
    assert set(report.unexpected) == {"cls", "head/kernel", "head/bias"}  # the table's first row goes unseen


def test_resolutions_of_published_models():
    """Parameters at 384 pixels differ by the position table alone."""
    for name, at_224, at_384 in (("b16", 86_567_656, 86_859_496), ("r26_s32", 36_431_912, 36_468_392)):
        from lookupjax.models.vit import PUBLISHED, VARIANTS

        old = VARIANTS[name]["pos_grid"]
        new = [n * 384 // 224 for n in old]
        rows = math.prod(new) - math.prod(old)
        assert PUBLISHED[name].params == at_224 and at_224 + rows * VARIANTS[name]["dim"] == at_384


@pytest.mark.parametrize(
    "options",
    [
        dict(resnet=(1, 2), patch=(1, 1), pos_grid=(6, 7)),
        dict(resnet=()),
        dict(head="map", pos_grid=(11, 12)),
    ],
)
def test_the_formula_of_products(options):
    model = nnx.eval_shape(lambda: create_model("vit_mu", **OPTIONS | options))
    assert model.macs((46, 50)) == count_products(trace_model(model, (46, 50)))


def test_a_training_starts_from_a_file(tmp_path):
    """ViT and LookupViT, other positions and head; what a ViT does not have must be excluded by name."""
    path = saved(google_file() | {"stray": np.zeros(3)}, tmp_path / "a.npz")
    config = default_config()
    shape = dict(dim=DIM, depth=DEPTH, num_heads=HEADS, patch=(PATCH, PATCH), pos_grid=(4, 4))
    config.model = ConfigDict(dict(name="vit_mu", **shape))
    config.data.dir, config.ema, config.init.path = str(tmp_path / "data"), 0.9, str(path)
    experiment = Experiment(resolve(config), make_mesh(config.mesh))
    before = experiment.create_state()
    state, report = initialise(before, config.init, experiment.mesh, experiment.abstract_model)
    source = create_model("vit_mu", **OPTIONS, weights=path, strict=False)
    np.testing.assert_array_equal(state.params["embed"]["kernel"], source.embed.kernel[...])
    np.testing.assert_array_equal(state.ema["embed"]["kernel"], source.embed.kernel[...])
    np.testing.assert_array_equal(state.params["head"]["kernel"], before.params["head"]["kernel"])
    assert report.resized == ["pos 3x3x32 -> 4x4x32"] and report.unexpected == ["stray"]
    assert len(report.replaced) == 2 and not report.missing

    config.model = ConfigDict(dict(name="lookupvit_mu", compressed=(2, 2), **shape))
    experiment = Experiment(resolve(config), make_mesh(config.mesh))
    state = experiment.create_state()
    with pytest.raises(UserError, match=r"config\.init does not fit"):
        initialise(state, config.init, experiment.mesh, experiment.abstract_model)
    config.init.exclude = ("/cross/", "lookup_", "final_norm_l")
    state, report = initialise(state, config.init, experiment.mesh, experiment.abstract_model)
    np.testing.assert_array_equal(
        state.params["blocks"][0]["attn"]["q"]["kernel"], source.blocks[0].attn.q.kernel[...]
    )
    assert len(report.replaced) == 4


def test_adapters_of_models_take_what_the_loader_gives():
    for name in set(MODULES) & set(parity.families()):
        value_of = getattr(importlib.import_module(f"lookupjax.interop.{name}"), "parameter", None)
        if value_of is not None:
            _, *more = inspect.signature(value_of).parameters.values()
            assert [p.name for p in more[:2]] == ["path", "shape"], name
            assert all(p.default is not p.empty for p in more[2:]), name
