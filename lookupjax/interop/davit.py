"""DaViT: the names of dingmyu/davit's and timm's state dicts."""

import re
from typing import Any

import jax
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.attention.channel import ChannelAttention
from lookupjax.attention.window import WindowAttention
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import BLOCK, StateDict, channels_first, images, torch_value
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.davit import DaViT

NAMES = {"cpe1.conv": "cpe1.proj", "cpe2.conv": "cpe2.proj"} | BLOCK
OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "embed_dims": "dims",
    "depths": "depths",
    "num_heads": "num_heads",
    "num_classes": "num_classes",
    "attention_types": "attention_types",
    "attn_types": "attention_types",
    "window_size": "window",
    "qkv_bias": "qkv_bias",
    "cpe_act": "cpe_act",
    "down_kernel_size": "merge_kernel",
    "norm_eps": "eps",
    "drop_path_rate": "drop_path",
}


def official_path(path: str) -> str:
    """Our path with the components of dingmyu/davit."""
    path = re.sub(r"^stem/conv/", "patch_embeds/0/proj/", path)
    path = re.sub(r"^stem/norm/", "patch_embeds/0/norm/", path)
    path = re.sub(r"^stages/(\d+)/merge/conv/", r"patch_embeds/\1/proj/", path)
    path = re.sub(r"^stages/(\d+)/merge/norm/", r"patch_embeds/\1/norm/", path)
    path = re.sub(r"^stages/(\d+)/blocks/", r"main_blocks/\1/", path)
    path = re.sub(r"/cpe(\d)/conv/", lambda m: f"/cpe/{int(m[1]) - 1}/proj/", path)
    return re.sub(r"^norm/", "norms/", path)


def timm_path(path: str, params: StateDict, types: tuple[str, ...]) -> str:
    """Our path with timm's components; the blocks of a layer may be numbered or named."""
    path = re.sub(r"/merge/", "/downsample/", path)
    norm = "norm_pre/" if "norm_pre.weight" in params else "head/norm/"
    path = re.sub(r"^norm/", norm, re.sub(r"^head/", "head/fc/", path))
    block = re.match(r"(stages/\d+/blocks/\d+)/(\d)/", path)
    if block and f"{block[0]}norm1/weight".replace("/", ".") not in params:
        path = f"{block[1]}/{types[int(block[2])]}_block/{path[block.end() :]}"
    return path


def parameter(
    params: StateDict,
    path: str,
    shape: tuple[int, ...],
    types: tuple[str, ...] = ("spatial", "channel"),
) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict.

    `types` are the model's `attention_types`: timm can name its blocks by them.
    """
    official = "patch_embeds.0.proj.weight" in params
    name = official_path(path) if official else timm_path(path, params, types)
    return torch_value(params, name, NAMES)


def options(args: dict, kind: str) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    ours = {ours: tuples(args[theirs]) for theirs, ours in OWN.items() if theirs in args}
    window = ours.get("window", 7)
    ours["window"] = window if isinstance(window, int) else window[0]
    ours["mlp_ratio"] = float(args.get("mlp_ratio", 4.0)) if args.get("ffn", True) else None
    if args.get("overlapped_patch"):
        ours["merge_kernel"] = 3
    if args.get("head_norm_first"):
        ours["pool"] = "norm_mean"
    if args.get("channel_attn_v2"):
        ours |= dict(channel_form="v2", channel_scale="positions")
    return ours | dict(drop_path_by="layer" if kind == "timm" else "block")


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    kind, args = fixture.config["kind"], fixture.config["args"]
    if kind.startswith("channel_attention") or kind == "window_attention":
        return mixed(fixture)
    kwargs = options(args, kind)
    abstract = nnx.eval_shape(lambda: DaViT(**kwargs, rngs=Keys(0)))
    model = fill(abstract, lambda path, shape: parameter(fixture.params, path, shape, abstract.types))
    return jax.jit(official if kind == "official" else timm)(model, images(fixture.inputs["x"]))


def official(model: DaViT, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and, of every stage's first layer, the intermediate values as tokens (b, n, c)."""
    out, taps = record_taps(model, x, names=("output",))
    result = {"out/logits": out["logits"]}
    y = model.stem(x)
    for i, stage in enumerate(model.stages):
        start = y if stage.merge is None else stage.merge(y)
        result[f"out/patch_embed{i}"] = flatten_grid(start)
        y = start
        for k, (kind, block) in enumerate(zip(model.types, stage.blocks[0])):
            y = block(y)
            result[f"out/{kind}{i}_attn"] = taps[f"stages/{i}/blocks/0/{k}/attn/output"]
            result[f"out/{kind}{i}"] = flatten_grid(y)
        for layer in stage.blocks[1:]:
            for block in layer:
                y = block(y)
    return result


def timm(model: DaViT, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and stage maps (b, c, h, w)."""
    result = {"out/stem": channels_first(model.stem(x)), "out/logits": model(x)["logits"]}
    maps = model.features(x)
    return result | {f"out/stage{i}": channels_first(m) for i, m in enumerate(maps)}


def mixed(fixture: Fixture) -> dict[str, jax.Array]:
    """One attention module on its own: of channels over tokens (b, n, c), or of a batch of windows."""
    kind, args = fixture.config["kind"], fixture.config["args"]
    dim, heads, common = args["dim"], args["num_heads"], dict(qkv_bias=args.get("qkv_bias", False))
    if kind == "window_attention":
        common["window"] = tuples(args["window_size"])
    else:
        common["form"] = "v2" if kind.endswith("v2") else "v1"
        common["scale"] = "positions" if args.get("dynamic_scale", kind.endswith("v2")) else "head"
    mixer = WindowAttention if kind == "window_attention" else ChannelAttention
    abstract = nnx.eval_shape(lambda: mixer(dim, heads, **common, rngs=Keys(0)))
    names = {"out": "proj"}
    module = fill(abstract, lambda path, shape: torch_value(fixture.params, path, names))
    x = fixture.inputs["x"]
    grid = module.window if kind == "window_attention" else None
    return {"out/y": jax.jit(lambda module, x: module(x, grid=grid))(module, x)}
