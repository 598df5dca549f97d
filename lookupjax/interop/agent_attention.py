"""Agent Attention: the names of LeapLabTHU/Agent-Attention's state dicts (DeiT, PVT and Swin)."""

import re
from typing import Any

import jax
import numpy as np
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, images, torch_value
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.agent_deit import AgentDeiT
from lookupjax.models.agent_pvt import AgentPVT
from lookupjax.models.agent_swin import AgentSwin

NAMES = {
    "attn.attn": "attn",  # PVT's own attention wraps a mixer here
    "attn_norm": "norm1",
    "attn.out": "attn.proj",
    "attn.local": "attn.dwc",
    "reduce": "sr",
    "reduce_norm": "norm",
    "mlp_norm": "norm2",
}
TABLES = {  # of the two AgentBias: the token axis stands last there, the agents' axis second here
    "source_bias": {"coarse": "an", "rows": "ah", "columns": "aw", "prefix": "ac"},
    "query_bias": {"coarse": "na", "rows": "ha", "columns": "wa", "prefix": "ca"},
}
COMMON = {"in_chans": "channels", "num_classes": "num_classes", "qkv_bias": "qkv_bias"}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    path = re.sub(r"^stages/(\d+)/blocks/", lambda m: stage(params, m[1], "blocks"), path)
    path = re.sub(r"^stages/(\d+)/merge/", r"layers/\1/downsample/", path)
    path = re.sub(r"^stages/(\d+)/embed/", lambda m: stage(params, m[1], "patch_embed") + "proj/", path)
    path = re.sub(r"^stages/(\d+)/norm/", lambda m: stage(params, m[1], "patch_embed") + "norm/", path)
    path = re.sub(r"^embed(_norm)?/", lambda m: f"patch_embed/{'norm' if m[1] else 'proj'}/", path)
    table = re.fullmatch(r"(.*/attn)/(source_bias|query_bias)/(\w+)", path)
    if table:
        place, side, kind = table.groups()
        value = params[f"{place.replace('/', '.')}.{TABLES[side][kind]}_bias"]
        if kind != "coarse":
            value = value.squeeze(0)  # (heads, agents, token axes) or (heads, token axes, agents)
            value = value if side == "source_bias" else np.moveaxis(value, -1, 1)
        return value.reshape(shape)
    position = re.fullmatch(r"stages/(\d+)/pos", path)
    if position:
        return params[f"pos_embed{int(position[1]) + 1}"].reshape(shape)
    if path == "cls":
        return params["cls_token"].reshape(shape)
    if path in ("pos", "cls_pos"):
        return params["pos_embed"][0, slice(1, None) if path == "pos" else 0].reshape(shape)
    if path.endswith("attn/bias"):
        return params[path.replace("/", ".").replace(".bias", ".relative_position_bias_table")]
    return torch_value(params, path, NAMES)


def stage(params: StateDict, index: str, part: str) -> str:
    """The start of a name in stage `index`: PVT counts from 1 within the word, Swin nests."""
    if "patch_embed1.proj.weight" in params:
        return f"{part.removesuffix('s')}{int(index) + 1}/"
    return f"layers/{index}/{part}/"


def options(config: dict) -> tuple[type, dict[str, Any]]:
    """Our class and its constructor's arguments from the reference's."""
    args = {k: tuples(v) for k, v in config.items()}
    family, side = args["family"], args["img_size"]
    ours = {ours: args[theirs] for theirs, ours in COMMON.items() if theirs in args}
    ours |= dict(size=side if isinstance(side, tuple) else (side, side), agents=args["agent_num"])
    if family == "deit":
        ours |= dict(
            patch=(args["patch_size"],) * 2,
            dim=args["embed_dim"],
            depth=args["depth"],
            num_heads=args["num_heads"],
            mlp_ratio=float(args.get("mlp_ratio", 4)),
            agent_layers=args.get("agent_layer", -1),
        )
        return AgentDeiT, ours
    if family == "pvt":
        ours |= dict(
            patches=(args["patch_size"], *(2,) * (len(args["embed_dims"]) - 1)),
            dims=args["embed_dims"],
            depths=args["depths"],
            num_heads=args["num_heads"],
            mlp_ratio=tuple(map(float, args["mlp_ratios"])),
            kinds=args["attn_type"],
            agent_sr_ratios=tuple(map(int, args.get("agent_sr_ratios", "1111"))),
            sr_ratios=args["sr_ratios"],
            eps=args.get("norm_eps", 1e-6),
        )
        return AgentPVT, ours
    if family != "swin":
        raise UserError(f"agent_attention fixtures are of family deit, pvt or swin, not {family!r}")
    depths, kinds = args["depths"], args["attn_type"]
    ours |= dict(
        patch=args["patch_size"],
        dim=args["embed_dim"],
        depths=depths,
        num_heads=args["num_heads"],
        mlp_ratio=float(args.get("mlp_ratio", 4)),
        kinds=kinds[: len(depths)],
        mixed=int(kinds.strip("ABM") or 0),
        window=args["window_size"],
    )
    return AgentSwin, ours


def build(fixture: Fixture) -> AgentDeiT | AgentPVT | AgentSwin:
    """The model a fixture's config describes, with the fixture's parameters."""
    cls, kwargs = options(fixture.config)
    for name in fixture.params:
        if name.endswith(("relative_position_index", "attn_mask")):
            fixture.params[name]  # constants of the window and its shift, computed here
    model = nnx.eval_shape(lambda: cls(**kwargs, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    return jax.jit(forward)(build(fixture), images(fixture.inputs["x"]))


def forward(model: AgentDeiT | AgentPVT | AgentSwin, x: jax.Array) -> dict[str, jax.Array]:
    """The logits and intermediate values, named as the three families' fixtures do."""
    out, taps = record_taps(model, x, names=("output",))
    result = {"out/logits": out["logits"]}
    if isinstance(model, AgentDeiT):
        tokens = model.tokenize(x)
        for i, block in enumerate(model.blocks):
            tokens = block(tokens, grid=(x.shape[1] // model.patch[0], x.shape[2] // model.patch[1]))
            result |= {f"out/block{i}": tokens, f"out/attn{i}": taps[f"blocks/{i}/attn/output"]}
        return result | {"out/norm": model.norm(tokens)}
    maps = model.features(x)
    for i, (part, plane) in enumerate(zip(model.stages, maps)):
        first = f"stages/{i}/blocks/0/attn"
        attended = taps[f"{first}/output" if f"{first}/output" in taps else f"{first}/attn/output"]
        if isinstance(model, AgentPVT):
            result |= {f"out/block{i + 1}": flatten_grid(plane), f"out/attn{i + 1}": attended}
        else:
            merged = plane if part.merge is None else part.merge(plane)
            result |= {f"out/layer{i}": flatten_grid(merged), f"out/attn{i}": attended}
    if isinstance(model, AgentSwin):
        result["out/norm"] = model.encode(x)
    return result
