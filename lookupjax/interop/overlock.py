"""OverLoCK: the names of LMMMEng/OverLoCK's state dicts."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill, reals, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, images, rename_start, torch_value
from lookupjax.layers.position import resize_grid
from lookupjax.layers.reparam import BRANCHES, DilatedReparam
from lookupjax.layers.rngs import Keys
from lookupjax.models.overlock import ContMixBlock, OverLoCK

PARTS = {  # of Focus and plug-in blocks -> the reference's; those of a RepConvBlock follow
    "position1.conv": "dwconv1",
    "position2.conv": "dwconv2",
    "fusion.depthwise": "fusion.0",
    "fusion.norm": "fusion.1",
    "fusion.fc": "fusion.3",
    "fusion.response": "fusion.4",
    "mixer.q.conv": "weight_query.0",
    "mixer.q.norm": "weight_query.1",
    "mixer.k.conv": "weight_key.1",
    "mixer.k.norm": "weight_key.2",
    "mixer.v.conv": "weight_value.0",
    "mixer.v.norm": "weight_value.1",
    "mixer.kernels": "weight_proj",
    "mixer.small_table": "rpb1",
    "mixer.table": "rpb2",
    "large": "lepe.0",
    "large_norm": "lepe.1",
    "excite.fc1": "se_layer.proj.1",
    "excite.fc2": "se_layer.proj.3",
    "gate.conv": "gate.0",
    "gate.norm": "gate.1",
    "proj_norm": "proj.0",
    "proj": "proj.1",
    "residual1.affine": "ls1",
    "residual2.affine": "ls2",
    "mlp.fc1": "mlp.0",
    "mlp.depthwise.conv": "mlp.2",
    "mlp.response": "mlp.3",
    "mlp.fc2": "mlp.4",
    "keep": "x_scale",
    "prior": "h_scale",
}
FUSED = PARTS | {"mixer.out.conv": "dyconv_proj.0", "mixer.out.norm": "dyconv_proj.1"}
PLUG_IN = PARTS | {"mixer.out.conv": "fusion_proj.0", "mixer.out.norm": "fusion_proj.1"}
REP_CONV = {
    "position.conv": "dwconv",
    "norm": "proj.0",
    "large": "proj.1",
    "large_norm": "proj.2",
    "excite.fc1": "proj.3.proj.1",
    "excite.fc2": "proj.3.proj.3",
    "mlp.fc1": "proj.4",
    "mlp.depthwise.conv": "proj.6",
    "mlp.response": "proj.7",
    "mlp.fc2": "proj.8",
    "residual.affine": "ls",
}
OUTSIDE = {
    "context": "high_level_proj",
    "focus_down.conv": "patch_embedx.x_proj.0",
    "focus_down.norm": "patch_embedx.x_proj.1",
    "context_down.conv": "patch_embedx.h_proj.0",
    "context_down.norm": "patch_embedx.h_proj.1",
    "head.proj.conv": "head.0",
    "head.proj.norm": "head.1",
    "head.fc": "head.4",
    "aux.norm": "aux_head.0",
    "aux.fc": "aux_head.2",
}
OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "depth": "depths",
    "sub_depth": "focus_depths",
    "embed_dim": "dims",
    "kernel_size": "kernels",
    "mlp_ratio": "mlp_ratios",
    "sub_num_heads": "focus_heads",
    "sub_mlp_ratio": "focus_mlp_ratios",
    "smk_size": "small_kernel",
    "ls_init_value": "layer_scale",
    "projection": "projection",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path",
    "use_ds": "aux_head",
    "deploy": "merged",
}
REAL = {"mlp_ratio", "sub_mlp_ratio", "ls_init_value", "drop_path_rate"}
BLOCK = {  # the same for the plug-in block
    "dim": "dim",
    "num_heads": "num_heads",
    "kernel_size": "kernel",
    "smk_size": "small_kernel",
    "mlp_ratio": "mlp_ratio",
    "ls_init_value": "layer_scale",
    "deploy": "merged",
}


def split_path(path: str) -> tuple[str, str, Mapping[str, str]]:
    """(the reference's prefix, the rest of our path, the names that hold for that rest)."""
    if match := re.match(r"stem/convs/(\d)/(conv|norm)/", path):
        return f"patch_embed1.{3 * int(match[1]) + (match[2] == 'norm')}.", path[match.end() :], {}
    if match := re.match(r"down/(\d)/(conv|norm)/", path):
        return f"patch_embed{int(match[1]) + 2}.{int(match[2] == 'norm')}.", path[match.end() :], {}
    if match := re.match(r"stages/(\d)/(\d+)/", path):
        return f"blocks{int(match[1]) + 1}.{match[2]}.", path[match.end() :], REP_CONV
    if match := re.match(r"focus/(\d)/(\d+)/(block/)?", path):
        return f"sub_blocks{int(match[1]) + 3}.{match[2]}.", path[match.end() :], FUSED
    return "", path, OUTSIDE


def branch_name(params: StateDict, name: str) -> str:
    """Of a DilatedReparam: "lepe.0.branches.2.norm.mean" -> "lepe.0.dil_bn_k3_1.mean"."""
    name = re.sub(r"(^|(?:lepe\.0|proj\.1)\.)conv\.(kernel|bias)$", r"\1lk_origin.\2", name)
    match = re.fullmatch(r"(.*)branches\.(\d+)\.(conv|norm)\.(\w+)", name)
    if not match:
        return name
    prefix, index, part, kind = match[1], int(match[2]), match[3], match[4]
    if index == 0:
        return f"{prefix}{'lk_origin' if part == 'conv' else 'origin_bn'}.{kind}"
    k, r = BRANCHES[params[f"{prefix}lk_origin.weight"].shape[-1]][index - 1]
    return f"{prefix}dil_{'conv' if part == 'conv' else 'bn'}_k{k}_{r}.{kind}"


def named(params: StateDict, name: str, shape: tuple[int, ...]) -> Any:
    """Our parameter from its dotted name; 1x1 convolutions may be linear maps, affines are vectors here."""
    return torch_value(params, branch_name(params, name), {}).reshape(shape)


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter of an OverLoCK at `path`, of `shape`, from the reference's state dict."""
    prefix, rest, names = split_path(path)
    return named(params, prefix + rename_start(rest.replace("/", "."), names), shape)


def plug_in_parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """The same for a plug-in ContMixBlock."""
    return named(params, rename_start(path.replace("/", "."), PLUG_IN), shape)


def options(config: dict, names: Mapping[str, str]) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    ours = {
        names[key]: reals(value) if key in REAL else tuples(value)
        for key, value in config.items()
        if key in names
    }
    return ours | dict(scale_branch=not config.get("res_scale", True))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    kinds = {"net": net, "contmix": plug_in, "reparam": reparam}
    return kinds[fixture.config["kind"]](fixture, images(fixture.inputs["x"]))


def build(fixture: Fixture) -> OverLoCK:
    """The model a fixture's config describes, with the fixture's parameters."""
    kwargs = options(fixture.config, OWN)
    model = nnx.eval_shape(lambda: OverLoCK(**kwargs, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def net(fixture: Fixture, x: jax.Array) -> dict[str, jax.Array]:
    @jax.jit
    def run(model: OverLoCK, x: jax.Array) -> dict[str, jax.Array]:
        out, maps = model(x), model.overview(x)
        prior = model.context(maps[3])
        enlarged = resize_grid(prior, maps[2].shape[1:3], antialias=False)
        focus_x, focus_context = model.focus[0][0](maps[2], enlarged, enlarged)
        result = {
            "stage1_blk0": model.stages[0][0](model.stem(x)),
            "high_level_proj": prior,
            "sub3_0_x": focus_x,
            "sub3_0_ctx": focus_context,
            "features": model.focus_maps(maps[2], maps[3])[1],
        }
        result = {key: channels_first(value) for key, value in result.items()}
        heads = {"logits": out["logits"]} | ({"aux_logits": out["logits_aux"]} if model.aux else {})
        return {f"out/{key}": value for key, value in (result | heads).items()}

    return run(build(fixture), x)


def plug_in(fixture: Fixture, x: jax.Array) -> dict[str, jax.Array]:
    """The ContMix block for other networks."""
    config = {"res_scale": False, "ls_init_value": None} | fixture.config
    kwargs = options(config, BLOCK)
    abstract = nnx.eval_shape(lambda: ContMixBlock(**kwargs, rngs=Keys(0)))
    block = fill(abstract, lambda path, shape: plug_in_parameter(fixture.params, path, shape))
    return {"out/y": channels_first(jax.jit(lambda block, x: block(x))(block, x))}


def reparam(fixture: Fixture, x: jax.Array) -> dict[str, jax.Array]:
    """A large depthwise kernel as a sum of branches, and merged."""
    config = fixture.config
    abstract = nnx.eval_shape(lambda: DilatedReparam(config["channels"], config["kernel_size"], rngs=Keys(0)))
    large = fill(abstract, lambda path, shape: named(fixture.params, path.replace("/", "."), shape))
    merged = large.merge().conv
    return {
        "out/y": channels_first(jax.jit(lambda large, x: large(x))(large, x)),
        "out/merged_weight": merged.kernel[...].transpose(3, 2, 0, 1),
        "out/merged_bias": merged.bias[...],
    }
