"""BiFormer: the names of rayleizhu/BiFormer's state dicts, of both attention operators."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.attention.bra import BiLevelRoutingAttention
from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, channels_last, images, torch_value
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.biformer import BiFormer

OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "num_classes": "num_classes",
    "embed_dim": "dims",
    "depth": "depths",
    "topks": "topk",
    "n_wins": "regions",
    "head_dim": "head_dim",
    "before_attn_dwconv": "position_kernel",
    "mlp_dwconv": "mlp_local",
    "pre_norm": "pre_norm",
    "drop_path_rate": "drop_path",
}
DEFAULTS = {  # of the reference, where they are not ours
    "depth": [3, 4, 8, 3],
    "embed_dim": [64, 128, 320, 512],
    "head_dim": 64,
    "topks": [8, 8, -1, -1],
    "kv_per_wins": [2, 2, -1, -1],
    "kv_downsample_ratios": [4, 2, 1, 1],
}
SWIN_DEFAULTS = {"depth": [2, 2, 6, 2], "embed_dim": [96, 192, 384, 768], "topks": [1, 4, 16, -2]}
ROUTING = {
    "n_win": "regions",
    "side_dwconv": "local_kernel",
    "param_routing": "routing_proj",
    "diff_routing": "routing_gradient",
    "soft_routing": "soft_routing",
}
KV_POOLS = {
    "identity": "none",
    "ada_avgpool": "adaptive_avg",
    "ada_maxpool": "adaptive_max",
    "avgpool": "avg",
    "maxpool": "max",
}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    swin = "stages.0.blocks.0.norm1.weight" in params
    block, attention, rest = path.partition("/attn/")
    if attention:
        stage, j = re.fullmatch(r"stages/(\d+)/(\d+)", block).groups()
        place = f"stages.{stage}.blocks.{j}" if swin else f"stages.{stage}.{j}"
        return attention_value(params, f"{place}.attn.", rest, shape)
    return torch_value(params, reference_path(path, swin, params), {}).reshape(shape)


def reference_path(path: str, swin: bool, params: StateDict) -> str:
    """Our path outside of the attention with the reference's components."""
    stem = re.match(r"stem/(convs|norms)/(\d)/", path)
    if stem:
        index = 3 * int(stem[2]) + int(stem[1] == "norms")
        return f"downsample_layers/0/{index}/{path[stem.end() :]}"
    merge = re.match(r"merges/(\d+)/(conv|norm)/", path)
    if merge:
        second = (merge[2] == "conv") == swin
        return f"downsample_layers/{int(merge[1]) + 1}/{int(second)}/{path[merge.end() :]}"
    block = re.match(r"stages/(\d+)/(\d+)/", path)
    if block:
        place = f"stages/{block[1]}/blocks/{block[2]}" if swin else f"stages/{block[1]}/{block[2]}"
        last = "mlp/2/" if f"{place}/mlp/2/weight".replace("/", ".") in params else "mlp/3/"
        rest = path[block.end() :]
        for ours, theirs in {
            "position/": "pos_embed/",
            "attn_norm/": "norm1/",
            "mlp_norm/": "norm2/",
            "mlp/fc1/": "mlp/0/",
            "mlp/local/": "mlp/1/dwconv/",
            "mlp/fc2/": last,
        }.items():
            rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
        return f"{place}/{rest}"
    return path


def attention_value(params: StateDict, stem: str, path: str, shape: tuple[int, ...]) -> Any:
    """A parameter of either routed operator, or of the attention over all tokens."""
    part, kind = path.split("/")
    suffix = {"kernel": "weight"}.get(kind, kind)
    if part in "qkv":
        joint = next(n for n in ("qkv.qkv", "qkv_linear", "qkv") if f"{stem}{n}.weight" in params)
        value, width = params[f"{stem}{joint}.{suffix}"], shape[-1]
        value = {"q": value[:width], "k": value[width : 2 * width], "v": value[-width:]}[part]
    else:
        names = {"local": ("lepe",), "out": ("wo", "output_linear", "proj"), "route": ("router.emb",)}
        names |= {f"conv{i}": (str(i),) for i in (1, 2, 3)}
        own = next(n for n in names[part] if f"{stem}{n}.weight" in params)
        value = params[f"{stem}{own}.{suffix}"]
    return (channels_last(value) if kind == "kernel" else value).reshape(shape)


def routing_options(args: dict) -> dict[str, Any]:
    """Options of the routed attention."""
    ours = {ours: args[theirs] for theirs, ours in ROUTING.items() if theirs in args}
    return ours | dict(out_proj=args.get("param_attention", "qkvo") == "qkvo")


def options(args: dict, kind: str, params: StateDict) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    swin = "stages.0.blocks.0.norm1.weight" in params
    args = (SWIN_DEFAULTS if swin else DEFAULTS) | args
    ours = routing_options(args) | {
        ours: tuples(args[theirs]) for theirs, ours in OWN.items() if theirs in args
    }
    if args.get("qk_scale") is not None:
        raise UserError("qk_scale is not built: the scale follows from the width")
    ours["mlp_ratios"] = tuple(map(float, args.get("mlp_ratios", (4,) * len(ours["depths"]))))
    scale = args.get("layer_scale_init_value", -1)
    ours["layer_scale"] = scale if scale > 0 else None
    ours["qk_dims"] = tuple(own or dim for own, dim in zip(args.get("qk_dims") or ours["dims"], ours["dims"]))
    mode = args.get("kv_downsample_mode", "identity" if swin else "ada_avgpool")
    sizes = "kv_per_wins" if mode.startswith("ada") else "kv_downsample_ratios"
    ours |= dict(kv_pool=KV_POOLS[mode], kv_sizes=tuples(args.get(sizes, [4] * len(ours["depths"]))))
    if swin:
        statistics = "downsample_layers.0.1.running_mean" in params
        ours |= dict(layout="swin", position_kernel=0, norm="batch" if statistics else "layer")
    if "nchw" in kind:  # its -1 is attention over all tokens with a local term on the values, always of 5
        topk = tuple(-2 if k == -1 else k for k in ours["topk"])
        ours |= dict(pad="after", local="values", full_kernel=5, topk=topk)
    return ours


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    kind, args, params = fixture.config["kind"], fixture.config["args"], fixture.params
    if "dim" in args:
        return routed(fixture)
    kwargs = options(args, kind, params)
    abstract = nnx.eval_shape(lambda: BiFormer(**kwargs, rngs=Keys(0)))
    model = fill(abstract, lambda path, shape: parameter(params, path, shape))
    return jax.jit(forward, static_argnums=2)(model, images(fixture.inputs["x"]), "nchw" in kind)


def forward(model: BiFormer, x: jax.Array, first: bool) -> dict[str, jax.Array]:
    """The model's outputs, its maps (b, c, h, w), and what the attentions give (b, h, w, c), or
    (b, c, h, w) with `first`."""
    out, taps = record_taps(model, x, names=("output",))
    maps = model.features(x)
    result = {"out/logits": out["logits"], "out/stem": channels_first(model.stem(x, train=False))}
    result |= {f"out/stage{i}": channels_first(y) for i, y in enumerate(maps)}
    for place, value in taps.items():
        stage, block = re.match(r"stages/(\d+)/(\d+)/", place).groups()
        value = value.reshape(maps[int(stage)].shape)
        result[f"out/stage{stage}_blk{block}_attn"] = channels_first(value) if first else value
    return result


def routed(fixture: Fixture) -> dict[str, jax.Array]:
    """One routed attention on its own, with its choice of regions."""
    kind, args = fixture.config["kind"], fixture.config["args"]
    after = "nchw" in kind
    kwargs = dict(local_kernel=3) | routing_options(args) | dict(pad="after" if after else "before")
    kwargs |= dict(topk=args.get("topk", 4), qk_dim=args.get("qk_dim"))
    mode = args.get("kv_downsample_mode", "identity")
    size = args.get("kv_per_win" if mode.startswith("ada") else "kv_downsample_ratio", 4)
    kwargs |= dict(kv_pool=KV_POOLS[mode], kv_size=size)
    heads = args.get("num_heads", 8)
    abstract = nnx.eval_shape(lambda: BiLevelRoutingAttention(args["dim"], heads, **kwargs, rngs=Keys(0)))
    module = fill(abstract, lambda path, shape: attention_value(fixture.params, "", path, shape))
    x = images(fixture.inputs["x"]) if after else fixture.inputs["x"]

    @jax.jit
    def run(module: BiLevelRoutingAttention, x: jax.Array) -> dict[str, jax.Array]:
        names = ("routes", "route_weights")
        y, taps = record_taps(module, flatten_grid(x), grid=x.shape[1:3], names=names)
        y = y.reshape(*x.shape[:3], -1)
        routes, weights = (taps[f"/{name}"] for name in names)
        return {
            "out/y": channels_first(y) if after else y,
            "out/r_idx": routes,
            "out/r_idx_sorted": jnp.sort(routes, axis=-1),
            "out/r_weight": weights,
        }

    return run(module, x)
