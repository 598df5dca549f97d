"""HaloNet: the names of timm's ByobNet and HaloAttn, and of lucidrains/halonet-pytorch's layer."""

import re
from typing import Any

import jax
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.attention.halo import HaloAttention
from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, images, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.halonet import BlockSpec, HaloNet, Stage

KINDS = {"bottle": "conv", "self_attn": "halo"}
POOLS = {"": "none", "max": "max", "maxpool": "max", "max2": "max2"}
POOLS |= {"avg": "average", "avgpool": "average", "avg2": "average2"}
ATTENTION = {  # argument of timm's HaloAttn -> ours
    "num_heads": "num_heads",
    "block_size": "block",
    "halo_size": "halo",
    "dim_head": "head_dim",
    "qk_ratio": "qk_ratio",
    "qkv_bias": "qkv_bias",
    "avg_down": "average",
    "scale_pos_embed": "scale_position",
    "stride": "stride",
    "dim_out": "dim_out",
}
NAMES = {  # components of our bottlenecks -> timm's
    r"conv([13])/conv": r"conv\1_1x1/conv",
    r"conv([13])/norm": r"conv\1_1x1/bn",
    r"middle/conv/conv": "conv2_kxk/conv",
    r"middle/conv/norm": "conv2_kxk/bn",
    r"middle/gate": "attn",
    r"middle/norm": "post_attn",
}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from timm's state dict."""
    stem, attention, rest = path.partition("/middle/attn/")
    if attention:
        return attention_value(params, f"{stem}/self_attn/".replace("/", "."), rest, shape)
    return torch_value(params, timm_path(path, params), {}).reshape(shape)


def timm_path(path: str, params: StateDict) -> str:
    """Our path outside of the attention with timm's components."""
    part, _, rest = path.partition("/")
    if part == "head":
        return f"head/fc/{rest}"
    if part == "final":
        return f"final_conv/{rest}".replace("/norm/", "/bn/")
    if part == "stem":
        number, rest = rest.removeprefix("convs/").split("/", 1)
        single = "stem.conv.weight" in params  # a lone convolution has no number
        return f"stem/{'' if single else f'conv{int(number) + 1}/'}{rest}".replace("/norm/", "/bn/")
    block, inner = re.fullmatch(r"(stages/\d+/\d+)/(.*)", path).groups()
    if inner.startswith("shortcut/"):
        pooled = f"{block}/shortcut/conv/conv/weight".replace("/", ".") in params
        inner = inner if pooled else inner.replace("shortcut/conv/", "shortcut/")
        return f"{block}/{inner}".replace("/norm/", "/bn/")
    for ours, theirs in NAMES.items():
        inner = re.sub(f"^{ours}/", f"{theirs}/", inner)
    return f"{block}/{inner}"


def attention_value(params: StateDict, stem: str, path: str, shape: tuple[int, ...]) -> Any:
    """Parameters of timm's HaloAttn (joint keys and values head by head) or BottleneckAttn."""
    if path in ("rows", "columns"):
        return params[f"{stem}pos_embed.{'height' if path == 'rows' else 'width'}_rel"]
    part, kind = path.split("/")
    kind = {"kernel": "weight"}.get(kind, kind)
    if f"{stem}qkv.{kind}" in params:
        value = params[f"{stem}qkv.{kind}"]
        width = shape[-1]
        value = {"q": value[:width], "k": value[width : 2 * width], "v": value[-width:]}[part]
    elif part == "q":
        value = params[f"{stem}q.{kind}"]
    else:
        head = params[f"{stem}pos_embed.height_rel"].shape[1]
        joint = params[f"{stem}kv.{kind}"]
        by_head = joint.reshape(params[f"{stem}q.{kind}"].shape[0] // head, -1, *joint.shape[1:2])
        value = by_head[:, :head] if part == "k" else by_head[:, head:]
    return value.reshape(shape[-1], *shape[:-1]).T


def masked_value(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter from lucidrains' layer: linear maps, all keys before all values."""
    if path in ("rows", "columns"):
        return params["rel_pos_emb.rel_height" if path == "rows" else "rel_pos_emb.rel_width"]
    part, kind = path.split("/")
    if part == "out":
        return params["to_out.weight"].T if kind == "kernel" else params["to_out.bias"]
    if part == "q":
        return params["to_q.weight"].T
    half = params["to_kv.weight"].shape[0] // 2
    return (params["to_kv.weight"][:half] if part == "k" else params["to_kv.weight"][half:]).T


def attention_options(args: dict) -> dict[str, Any]:
    return {ours: args[theirs] for theirs, ours in ATTENTION.items() if args.get(theirs) is not None}


def block_specs(block: dict, model: dict, first: bool) -> Stage:
    """The bottlenecks of one entry of timm's `blocks`, whose own options replace the model's."""

    def own(key: str) -> Any:
        return block[key] if block.get(key) is not None else model.get(key)

    if block["type"] not in KINDS:
        raise UserError(f"HaloNet has no block of type {block['type']!r}; it has {sorted(KINDS)}")
    kind, mixer = KINDS[block["type"]], own("self_attn_layer")
    if kind == "halo" and mixer not in ("halo", "bottleneck"):
        raise UserError(f"self_attn_layer={mixer!r} is not built; use 'halo' or 'bottleneck'")
    attention = attention_options(own("self_attn_kwargs") or {})
    if kind == "halo" and mixer == "bottleneck":
        kind, attention = "relative", dict(num_heads=4) | attention
    spec = BlockSpec(
        kind,
        width=block["c"],
        ratio=block.get("br", 1.0),
        group_width=block.get("gs") or 0,
        gate=own("attn_layer") or "none",
        squeeze=(own("attn_kwargs") or {}).get("rd_ratio", 1 / 16),
        attention=attention,
    )
    strides = [block.get("s", 2) if first else 1] + [1] * (block["d"] - 1)
    return tuple(spec._replace(stride=stride) for stride in strides)


def options(config: dict) -> dict[str, Any]:
    """Our constructor's arguments from timm's ByoModelCfg."""
    args = config["args"]
    blocks = [entry if isinstance(entry, list) else [entry] for entry in args["blocks"]]
    groups = config.get("stage_groups") or [1] * len(blocks)
    stages, at = [], 0
    for n in groups:
        entries = [block for entry in blocks[at : at + n] for block in entry]
        specs = [block_specs(block, args, first=i == 0) for i, block in enumerate(entries)]
        stages.append(tuple(spec for stage in specs for spec in stage))
        at += n
    extra = args.get("block_kwargs") or {}
    stem, kind = args.get("stem_chs", 32), args.get("stem_type", "3x3")
    shortcut = {"conv1x1": "conv", "avg": "average", "": "none"}[args.get("downsample", "conv1x1")]
    return dict(
        channels=args.get("in_chans", 3),
        stem=stem_widths(kind, tuples(stem)),
        stem_kernel=7 if kind == "7x7" else 3,
        stem_pool=POOLS[args.get("stem_pool", "maxpool") or ""],
        stages=tuple(stages),
        final=args.get("num_features", 0),
        num_classes=config.get("num_classes", args.get("num_classes", 1000)),
        activation=args.get("act_layer", "relu"),
        shortcut=shortcut,
        ratio_of_input=extra.get("bottle_in", False),
        linear_out=extra.get("linear_out", False),
    )


def stem_widths(kind: str, width: int | tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the stem's convolutions."""
    if isinstance(width, tuple):
        return width
    if kind == "tiered":
        return (3 * width // 8, width // 2, width)
    if kind == "deep":
        return (width,) * 3
    if kind == "quad":
        return tuple(round(width * 0.5**i) for i in (3, 2, 1, 0))
    return (width,)


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    config, x = fixture.config, images(fixture.inputs["x"])
    if config["kind"] != "byob":
        return attended(fixture, x)
    kwargs = options(config)
    kwargs["stages"] = tuple(
        tuple(
            sized(spec, fixture.params, f"stages.{i}.{j}.self_attn.pos_embed") for j, spec in enumerate(stage)
        )
        for i, stage in enumerate(kwargs["stages"])
    )
    abstract = nnx.eval_shape(lambda: HaloNet(**kwargs, rngs=Keys(0)))
    model = fill(abstract, lambda path, shape: parameter(fixture.params, path, shape))
    return jax.jit(forward)(model, x)


def sized(spec: BlockSpec, params: StateDict, block: str) -> BlockSpec:
    """`spec` with the map size that its relative attention's tables in `params` are for."""
    if spec.kind != "relative":
        return spec
    tables = [params[f"{block}.self_attn.pos_embed.{axis}_rel"] for axis in ("height", "width")]
    size = tuple((table.shape[0] + 1) // 2 for table in tables)
    return spec._replace(attention=dict(spec.attention or {}, size=size))


def forward(model: HaloNet, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and the maps of its stages and attentions, (b, c, h, w)."""
    out, taps = record_taps(model, x, names=("output",))
    result = {"out/logits": out["logits"], "out/stem": channels_first(model.stem(x, train=False))}
    result |= {f"out/s{i}": channels_first(y) for i, y in enumerate(model.features(x))}
    for place, value in taps.items():
        stage, block = re.match(r"stages/(\d+)/(\d+)/", place).groups()
        result[f"out/s{stage}_attn{block}"] = channels_first(value)
    return result


def attended(fixture: Fixture, x: jax.Array) -> dict[str, jax.Array]:
    """One attention layer on its own."""
    args = fixture.config["args"]
    if fixture.config["kind"] == "halo_attention_masked":
        heads, value = args["heads"], masked_value
        kwargs = dict(block=args["block_size"], halo=args["halo_size"], head_dim=args["dim_head"])
        kwargs |= dict(dim_out=heads * args["dim_head"], scale_position=True, mask_padding=True)
    else:
        kwargs = attention_options(args)
        heads = kwargs.pop("num_heads", 8)
        kwargs |= dict(out_proj=False)

        def value(params, path, shape):
            return attention_value(params, "", path, shape)

    abstract = nnx.eval_shape(lambda: HaloAttention(args["dim"], heads, **kwargs, rngs=Keys(0)))
    module = fill(abstract, lambda path, shape: value(fixture.params, path, shape))
    return {"out/y": channels_first(jax.jit(lambda module, x: module.over_map(x))(module, x))}
