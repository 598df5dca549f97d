"""ViT: the npz files of google-research/vision_transformer and big_vision, and timm's state dicts.

Google's names, in every layout that was published:

    old       Transformer/encoderblock_3/ LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3
    linen     Transformer/encoderblock_3/ LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0
    scanned   Transformer/encoderblock/ ...  with a leading axis over the blocks
    prefixed  "params/", "params/img/", "img/", "opt/target/", "target/" before all of these

Positions are Transformer/posembed_input/pos_embedding (1, [1 +] N, D), the class token's row first, or
big_vision's pos_embedding (1, N, D), which never has such a row.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import BLOCK, StateDict, images, torch_value
from lookupjax.layers.position import resize_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.vit import ViT
from lookupjax.paths import named_leaves

TIMM_NAMES = BLOCK | {
    "q_norm.norm": "q_norm",
    "k_norm.norm": "k_norm",
    "embed": "patch_embed.proj",
    "map.attn.out": "attn_pool.proj",
    "map.attn": "attn_pool",
    "map": "attn_pool",
}
GOOGLE_BLOCK = {  # our module: the reference's, by old numbering and by linen's
    "attn_norm": ("LayerNorm_0",),
    "attn": ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    "mlp_norm": ("LayerNorm_2", "LayerNorm_1"),
    "mlp": ("MlpBlock_3", "MlpBlock_0"),
}
GOOGLE_MAP = {"attn": "MultiHeadDotProductAttention_0", "norm": "LayerNorm_0", "mlp": "MlpBlock_0"}
GOOGLE_LEAF = {"q": "query", "k": "key", "v": "value", "fc1": "Dense_0", "fc2": "Dense_1"}
POSITIONS = ("Transformer/posembed_input/pos_embedding", "pos_embedding")


def is_google(params: StateDict) -> bool:
    """Whether these are names of the JAX code bases."""
    return any(name.endswith("embedding/kernel") for name in params)


def google_prefix(params: StateDict) -> str:
    """What stands before every name of the model, such as "params/"."""
    names = [name for name in params if re.fullmatch(r"(.*/)?embedding/kernel", name)]
    return min(names, key=len).removesuffix("embedding/kernel")


def google_names(path: str) -> list[str]:
    """What our `path` can be called, without a prefix; the old names come first."""
    path = re.sub(r"^stem/stages/(\d+)/(\d+)/", lambda m: f"block{int(m[1]) + 1}/unit{int(m[2]) + 1}/", path)
    path = re.sub(r"^stem/", "", path)
    path = re.sub(r"^embed/", "embedding/", path)
    path = re.sub(r"^norm/", "Transformer/encoder_norm/", path)
    pooling = re.fullmatch(r"map/(\w+)/(.*)", path)
    if pooling:
        return [f"MAPHead_0/{GOOGLE_MAP[pooling[1]]}/{_google_leaf(pooling[2])}"]
    block = re.fullmatch(r"blocks/(\d+)/(\w+)/(.*)", path)
    if block and block[2] in GOOGLE_BLOCK:
        number, module, leaf = block.groups()
        leaf = _google_leaf(leaf)
        modules = GOOGLE_BLOCK[module]
        single = [f"Transformer/encoderblock_{number}/{m}/{leaf}" for m in modules]
        return single + [f"Transformer/encoderblock/{m}/{leaf}" for m in modules]  # scanned
    return ["MAPHead_0/probe" if path == "map/probe" else path]


def _google_leaf(leaf: str) -> str:
    first, slash, rest = leaf.partition("/")
    return GOOGLE_LEAF.get(first, first) + slash + rest


def google_value(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path` from an npz file's arrays.

    Raises:
      UserError: when the file does not have it.
      ValueError: when it has another size.
    """
    prefix = google_prefix(params)
    if path in ("pos", "cls_pos"):
        name = next((prefix + p for p in POSITIONS if prefix + p in params), prefix + POSITIONS[0])
        has_row = name.endswith(POSITIONS[0]) and prefix + "cls" in params
        if path == "cls_pos" and not has_row:
            raise UserError("the file's position table has no row for the class token: use pos_token=False")
        table = params[name]
        return (table[:, :1] if path == "cls_pos" else table[:, int(has_row) :]).reshape(shape)
    names = [prefix + name for name in google_names(path)]
    name = next((name for name in names if name in params), names[0])
    value = params[name]
    if "/encoderblock/" in name:
        value = value[int(path.split("/")[1])]
    return value.reshape(shape)  # heads are an axis there, GroupNorm's scale (1, 1, 1, d) in old files


def position_rows(params: StateDict) -> int:
    """Rows of timm's position table that stand before the patches'.

    All prefix tokens have one, or none has (`no_embed_class`): whichever leaves a square grid.
    """
    rows = params["pos_embed"].shape[1]
    registers = params["reg_token"].shape[1] if "reg_token" in params else 0
    prefix = int("cls_token" in params) + registers
    bare = math.isqrt(rows - prefix) ** 2 != rows - prefix and math.isqrt(rows) ** 2 == rows
    return 0 if bare else prefix


def timm_value(params: StateDict, path: str, shape: tuple[int, ...], rows: int | None = None) -> Any:
    """Our parameter at `path` from a timm state dict.

    Registers with positions of their own are loaded as the sum of both.

    Args:
      rows: see `position_rows`, which guesses it.

    Raises:
      UserError, KeyError: when the state dict does not have it.
      ValueError: when it has another size.
    """
    if path in ("cls", "map/probe"):
        return params["cls_token" if path == "cls" else "attn_pool.latent"].reshape(shape)
    if path in ("pos", "cls_pos", "registers"):
        rows = position_rows(params) if rows is None else rows
        table = params["pos_embed"]
        if path == "pos":
            return table[:, rows:].reshape(shape)
        if path == "registers":
            own = params["reg_token"][0]
            return own + table[0, rows - len(own) : rows] if rows else own
        if not rows:
            raise UserError("the position table has no row for the class token: use pos_token=False")
        return table[:, :1].reshape(shape)
    path = re.sub(r"^norm/", "fc_norm/" if "fc_norm.weight" in params else "norm/", path)
    path = re.sub(r"^map/attn/([kv])/", r"map/attn/kv/\1/", path)
    if path.startswith("map/attn/kv/"):
        _, _, _, which, leaf = path.split("/")
        joint = params[f"attn_pool.kv.{'weight' if leaf == 'kernel' else 'bias'}"]
        half = joint.shape[0] // 2
        value = joint[:half] if which == "k" else joint[half:]
        return value.T if leaf == "kernel" else value
    if path.startswith("stem/"):
        path = _timm_stem(params, path)
    return torch_value(params, path, TIMM_NAMES)


def _timm_stem(params: StateDict, path: str) -> str:
    """The ResNet's names: norm1 for gn1, downsample.conv for conv_proj; the root alone is a Sequential."""
    backbone = "patch_embed/backbone/"
    root = backbone + ("0/" if "patch_embed.backbone.0.conv.weight" in params else "stem/")
    path = path.replace("stem/conv_root/", root + "conv/").replace("stem/gn_root/", root + "norm/")
    path = re.sub(r"^stem/stages/(\d+)/(\d+)/", backbone + r"stages/\1/blocks/\2/", path)
    path = path.replace("/conv_proj/", "/downsample/conv/").replace("/gn_proj/", "/downsample/norm/")
    return re.sub(r"/gn(\d)/", r"/norm\1/", path)


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from a file of either kind."""
    return (google_value if is_google(params) else timm_value)(params, path, shape)


def build(fixture: Fixture) -> ViT:
    """The model a fixture's config describes, with the fixture's parameters."""
    google = is_google(fixture.params)
    kwargs = (google_options if google else timm_options)(fixture)
    rows = int(kwargs.get("class_token", 0)) + kwargs.get("registers", 0) if kwargs.get("pos_token") else 0
    abstract = nnx.eval_shape(lambda: ViT(**kwargs, rngs=Keys(0)))

    def value(path: str, shape: tuple[int, ...]) -> Any:
        if google:
            return google_value(fixture.params, path, shape)
        return timm_value(fixture.params, path, shape, rows)

    return fill(abstract, value)


def google_options(fixture: Fixture) -> dict[str, Any]:
    """Our constructor's arguments from those of google-research/vision_transformer."""
    args, x = fixture.config["args"], fixture.inputs["x"]
    patch, transformer, resnet = tuple(args["patches"]["size"]), args["transformer"], args.get("resnet")
    options = dict(
        patch=patch,
        channels=x.shape[-1],
        dim=args["hidden_size"],
        depth=transformer["num_layers"],
        num_heads=transformer["num_heads"],
        num_classes=args.get("num_classes") or 0,
        mlp_ratio=(transformer["mlp_dim"] + 0.5) / args["hidden_size"],  # the width is rounded down
        head="token" if args.get("classifier", "token").startswith("token") else "gap",
        representation_size=args.get("representation_size"),
    )
    if resnet is not None:
        options |= dict(
            resnet=tuple(resnet["num_layers"]), resnet_width=int(64 * resnet.get("width_factor", 1))
        )
    return options | dict(pos_grid=_grid(options, x.shape[1:3]))


def timm_options(fixture: Fixture) -> dict[str, Any]:
    """Our constructor's arguments from those of timm's VisionTransformer."""
    args, x = fixture.config["args"], fixture.inputs["x"]
    pool = args.get("global_pool", "token")
    options = dict(
        patch=_pair(args.get("patch_size", 16)),
        channels=args.get("in_chans", x.shape[1]),
        dim=args.get("embed_dim", 768),
        depth=args.get("depth", 12),
        num_heads=args.get("num_heads", 12),
        num_classes=args.get("num_classes", 1000),
        mlp_ratio=float(args.get("mlp_ratio", 4.0)),
        head={"avg": "gap"}.get(pool, pool),
        class_token=args.get("class_token", True),
        pool="mean_norm" if "fc_norm.weight" in fixture.params else "norm_mean",
        pos_token=not args.get("no_embed_class", False),
        registers=args.get("reg_tokens", 0),
        layer_scale=args.get("init_values"),
        attention_options=dict(
            qk_norm="head" if args.get("qk_norm") else "none", qkv_bias=args.get("qkv_bias", True)
        ),
        gelu="exact",
        pos_resize="cubic",
        resnet_form="timm",
    )
    if any(name.startswith("patch_embed.backbone.") for name in fixture.params):
        options |= dict(resnet=_resnet_units(fixture.params))
    return options | dict(pos_grid=_grid(options, _pair(args.get("img_size", x.shape[2:]))))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _grid(options: dict[str, Any], size: tuple[int, ...]) -> tuple[int, ...]:
    """The token grid of images of `size`."""
    return nnx.eval_shape(lambda: ViT(**(options | dict(depth=0)), rngs=Keys(0))).grid(size)


def _resnet_units(params: StateDict) -> tuple[int, ...]:
    """Bottlenecks per stage, from the names."""
    found = [re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", name) for name in params]
    places = {(int(m[1]), int(m[2])) for m in found if m}
    return tuple(sum(stage == s for s, _ in places) for stage in sorted({s for s, _ in places}))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    if "x" not in fixture.inputs:
        return resized(fixture)
    model, x = build(fixture), fixture.inputs["x"]
    return jax.jit(google_forward if is_google(fixture.params) else timm_forward)(model, x)


def _logits(out: dict[str, jax.Array]) -> jax.Array:
    return out.get("logits", out["features"])


def google_forward(model: ViT, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs, and its modules' by their names there."""
    result, y = {}, x
    if model.stem is not None:
        y = model.stem.root(x)
        for number, stage in enumerate(model.stem.stages, start=1):
            for bottleneck in stage:
                y = bottleneck(y)
            result[f"out/block{number}"] = y
    result["out/embedding"] = model.embed(y)
    tokens = result["out/Transformer.posembed_input"] = model.tokenize(x)
    for number, block in enumerate(model.blocks):
        tokens = block(tokens)
        result[f"out/Transformer.encoderblock_{number}"] = tokens
    normed = model.norm(tokens)
    logits = _logits(model(x))
    return result | {
        "out/Transformer.encoder_norm": normed,
        "out/Transformer": normed,
        "out/pre_logits": model.pooled(tokens),
        "out/head": logits,
        "out/logits": logits,
    }


def timm_forward(model: ViT, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and intermediate values, by their names in the fixtures."""
    x = images(x)
    result = {}
    tokens = result["out/tokens"] = model.tokenize(x)
    for number, block in enumerate(model.blocks):
        result[f"out/block{number}_attn"] = block.attn(block.attn_norm(tokens))
        tokens = block(tokens)
        result[f"out/block{number}"] = tokens
    normed = model.norm(tokens) if model.pool == "norm_mean" else tokens
    return result | {
        "out/features": normed,
        "out/pre_logits": model.pooled(tokens),
        "out/logits": _logits(model(x)),
    }


def resized(fixture: Fixture) -> dict[str, jax.Array]:
    """Only the resizing of position tables (1, [prefix +] N, d), by each code base's rule."""
    if "google" in fixture.config["kind"]:
        return {
            f"out/{name}": resize_table(fixture.inputs[name], _pair(case["new"]), int(case["cls"]), "zoom")
            for name, case in fixture.config.items()
            if isinstance(case, dict)
        }
    sizes = re.findall(r"(\w+)->\((\d+), *(\d+)\)", fixture.config["layout"])
    return {
        f"out/{name}": resize_table(fixture.inputs["pe"], (int(h), int(w)), 1, "cubic")
        for name, h, w in sizes
    }


def resize_table(table: jax.Array, grid: tuple[int, int], prefix: int, method: str) -> jax.Array:
    """A square table (1, prefix + n * n, d) at another grid, its first rows kept."""
    n = math.isqrt(table.shape[1] - prefix)
    square = table[:, prefix:].reshape(1, n, n, table.shape[-1])
    new = resize_grid(square, grid, method=method)
    return jnp.concatenate([table[:, :prefix], new.reshape(1, -1, table.shape[-1])], axis=1)


def export(model: ViT) -> dict[str, np.ndarray]:
    """The model's parameters under the published names and shapes of the npz files (old numbering).

    Raises:
      UserError: for parameters that this layout has no place for.
    """
    named = {path: np.asarray(x) for path, x in named_leaves(nnx.to_pure_dict(nnx.state(model))).items()}
    dim, heads = model.dim, model.blocks[0].attn.num_heads
    d = dim // heads
    rows = [named.pop("pos").reshape(-1, dim)]
    if model.cls is not None:
        rows = [named.pop("cls_pos", np.zeros(dim))[None], *rows]
    arrays = {POSITIONS[0]: np.concatenate(rows)[None].astype(np.float32)}
    for path, value in named.items():
        if path == "registers" or "_scale/" in path or "/q_norm/" in path or "/k_norm/" in path:
            raise UserError(f"the npz layout of the published ViTs has no place for {path}")
        name, leaf = google_names(path)[0], path.rpartition("/")[2]
        projection = re.search(r"/attn/(q|k|v|out)/", path)
        if projection and projection[1] != "out":
            value = value.reshape(dim, heads, d) if leaf == "kernel" else value.reshape(heads, d)
        elif projection and leaf == "kernel":
            value = value.reshape(heads, d, dim)
        elif path in ("cls", "map/probe"):
            value = value.reshape(1, 1, dim)
        arrays[name] = value
    return arrays
