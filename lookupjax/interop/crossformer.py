"""CrossFormer and CrossFormer++: the names of cheerss/CrossFormer's state dicts."""

import math
import re
from typing import Any

import jax
import numpy as np
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.attention.lsda import DynamicPositionBias
from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import BLOCK, StateDict, images, torch_value
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.crossformer import CrossFormer

NAMES = {"cool": "ex_conv", "cool_norm": "ex_ln", "cpe_norm": "norm_cpe"} | BLOCK
OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "num_classes": "num_classes",
    "patch_size": "patches",
    "merge_size": "merges",
    "embed_dim": "dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "crs_interval": "intervals",
    "qkv_bias": "qkv_bias",
    "use_acl": "cooling",
    "drop_path_rate": "drop_path",
}


def reference_path(path: str) -> str:
    """Our path with the reference's components."""
    path = re.sub(r"^embed/convs/", "patch_embed/projs/", path)
    path = re.sub(r"^embed_norm/", "patch_embed/norm/", path)
    path = re.sub(r"^stages/(\d+)/", r"layers/\1/blocks/", path)
    path = re.sub(r"^merges/(\d+)/embed/convs/", r"layers/\1/downsample/reductions/", path)
    return re.sub(r"^merges/(\d+)/norm/", r"layers/\1/downsample/norm/", path)


def bias_path(path: str) -> str:
    """Components of the position bias."""
    path = re.sub(r"(^|/)project/", r"\1pos_proj/", path)
    path = re.sub(r"(^|/)norms/(\d)/", lambda m: f"{m[1]}pos{int(m[2]) + 1}/0/", path)
    return re.sub(r"(^|/)layers/(\d)/(?=kernel|bias)", lambda m: f"{m[1]}pos{int(m[2]) + 1}/2/", path)


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    if path == "pos":
        return params["absolute_pos_embed"].reshape(shape)
    block, bias, rest = path.partition("/attn/bias/")
    path = f"{reference_path(block + '/')}attn/pos/{bias_path(rest)}" if bias else reference_path(path)
    return torch_value(params, path, NAMES)


def group_sizes(args: dict) -> tuple[int | tuple[int, ...], ...]:
    """G of every stage or, with the reference's `group_type`, of each of its blocks.

    The "linear" types let the share of the map that a group spans grow from 4 tokens to all, block by block.
    """
    sizes, depths, kind = tuples(args["group_size"]), args["depths"], args.get("group_type", "constant")
    if kind == "constant":
        return sizes
    if kind == "7_14":
        return tuple(
            tuple(size // 2 if i == 2 and j < 4 else size for j in range(depth))
            for i, (size, depth) in enumerate(zip(sizes, depths))
        )
    if kind not in ("linear", "linear_div", "alter"):
        raise UserError(f"group_type={kind!r} is unknown to CrossFormer")
    side, blocks = args["img_size"] // args["patch_size"][0], sum(depths)
    shares = iter(np.arange(4 / side, 1.0, (1 - 4 / side) / blocks)[:blocks])
    result, block = [], 0
    for i, depth in enumerate(depths):
        own, n = [], side >> i
        for share in (next(shares) for _ in range(depth)):
            size = n * share
            if kind != "linear" and size > n // 2:
                whole = size > 0.75 * n if kind == "linear_div" else block % 2 == 1
                size = n if whole or i != 2 else n // 2
            own.append(max(4, math.ceil(size)))
            block += 1
        result.append(tuple(own))
    return tuple(result)


def options(args: dict) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    ours = {ours: tuples(args[theirs]) for theirs, ours in OWN.items() if theirs in args}
    ours["groups"] = group_sizes(args)
    if args.get("use_cpe"):
        ours["cpe_rows"] = args["img_size"] // args["patch_size"][0]
    ratio = args.get("mlp_ratio", 4.0)
    ours["mlp_ratio"] = tuple(map(float, ratio)) if isinstance(ratio, list) else float(ratio)
    ours["pad"] = ("end", "centre")[args.get("pad_type", 0)]
    ours["mask_padding"] = not args.get("no_mask", False)
    if args.get("adaptive_interval"):
        ours["intervals"] = (None,) * len(args["depths"])
    if args.get("ape"):
        ours["pos_grid"] = (args["img_size"] // args["patch_size"][0],) * 2
    return ours


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    args, params = fixture.config["args"], fixture.params
    if fixture.config["kind"] == "dpb":
        return position_bias(fixture)
    kwargs = options(args)
    abstract = nnx.eval_shape(lambda: CrossFormer(**kwargs, rngs=Keys(0)))
    model = fill(abstract, lambda path, shape: parameter(params, path, shape))
    return jax.jit(forward)(model, images(fixture.inputs["x"]))


def position_bias(fixture: Fixture) -> dict[str, jax.Array]:
    """The position bias of given offsets. The reference calls a quarter of the model's width `dim`."""
    args = fixture.config["args"]
    width, heads, residual = args["dim"] // 4, args["num_heads"], args["residual"]
    abstract = nnx.eval_shape(lambda: DynamicPositionBias(width, heads, residual=residual, rngs=Keys(0)))
    module = fill(abstract, lambda path, shape: torch_value(fixture.params, bias_path(path), {}))
    return {"out/pos": jax.jit(lambda module, x: module(x))(module, fixture.inputs["biases"])}


def forward(model: CrossFormer, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and the tokens (b, n, c) after every block, merge, and stage with its merge."""
    out, taps = record_taps(model, x, names=("output",))
    x = model.tokenize(x)
    result = {"out/logits": out["logits"], "out/patch_embed": flatten_grid(x)}
    for i, blocks in enumerate(model.stages):
        for j, block in enumerate(blocks):
            x = block(x)
            result[f"out/s{i}b{j}"] = flatten_grid(x)
            result[f"out/s{i}b{j}_attn"] = taps[f"stages/{i}/{j}/attn/output"]
        if i < len(model.merges):
            x = model.merges[i](x)
            result[f"out/down{i}"] = flatten_grid(x)
        result[f"out/layer{i}"] = flatten_grid(x)
    return result
