"""PATNet: the names of haiduo/PartialNet's state dicts."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill, reals, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, images, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.patnet import ChannelMixing, PATNet, SelfMixing, SpatialGate

MIXING = {  # of PAT_ch and PAT_sf -> the reference's
    "conv": "partial_conv3",
    "attn.fc": "attn.cfc1",
    "attn.norm": "attn.bn",
    "attn.out": "attn.proj",
    "attn.table": "attn.rpe_k.lookup_table_bias",
}
GATE = {"norm": "norm2", "gate_norm": "norm", "gate": "conv_attn", "fc": "conv"}  # of PAT_sp; in this order
NAMES = {f"mix.{ours}": f"spatial_mixing.{theirs}" for ours, theirs in MIXING.items()}
NAMES |= {f"mlp.gate.{ours}": f"mlp.4.{theirs}" for ours, theirs in GATE.items()}
NAMES |= {
    "mix": "spatial_mixing",
    "mlp.fc1": "mlp.0",
    "mlp.norm": "mlp.1",
    "mlp.fc2": "mlp.3",
    "embed.conv": "patch_embed.proj",
    "embed": "patch_embed",
    "pre_head": "avgpool_pre_head.1",
}
OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "num_classes": "num_classes",
    "embed_dim": "dim",
    "depths": "depths",
    "mlp_ratio": "mlp_ratio",
    "n_div": "n_div",
    "feature_dim": "feature_dim",
    "layer_scale_init_value": "layer_scale",
    "drop_path_rate": "drop_path",
    "use_channel_attn": "channel_attention",
    "use_spatial_attn": "spatial_gate",
}
REAL = {"mlp_ratio", "layer_scale_init_value", "drop_path_rate"}
MODULES = {
    "pat_ch": (ChannelMixing, MIXING),
    "pat_sf": (SelfMixing, MIXING),
    "pat_sp": (SpatialGate, GATE),
}


def parameter(params: StateDict, path: str, shape: tuple[int, ...], names: Mapping[str, str] = NAMES) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    path = re.sub(r"^stages/(\d)/", lambda m: f"stages/{2 * int(m[1])}/blocks/", path)
    path = re.sub(r"^merge/(\d)/conv/", lambda m: f"stages/{2 * int(m[1]) + 1}/reduction/", path)
    path = re.sub(r"^merge/(\d)/norm/", lambda m: f"stages/{2 * int(m[1]) + 1}/norm/", path)
    if path.endswith("mlp/scale"):  # not the scale of a norm
        return params[path.removesuffix("mlp/scale").replace("/", ".") + "layer_scale"]
    return torch_value(params, path, names).reshape(shape)  # 1x1 convolutions are linear maps here


def heads(config: dict, key: str) -> int:
    return 4 if config.get(key, False) else 6


def build(fixture: Fixture) -> PATNet:
    """The model a fixture's config describes, with the fixture's parameters."""
    config = fixture.config
    options = {
        ours: (reals if theirs in REAL else tuples)(config[theirs])
        for theirs, ours in OWN.items()
        if theirs in config
    }
    options |= dict(activation=config["act_layer"].lower(), num_heads=heads(config, "patnet_t0"))
    model = nnx.eval_shape(lambda: PATNet(**options, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    x = images(fixture.inputs["x"])
    if "modules" in fixture.config:
        return {
            f"out/{name}": channels_first(module_output(fixture, name, config, x))
            for name, config in fixture.config["modules"].items()
        }
    return jax.jit(forward)(build(fixture), x)


def forward(model: PATNet, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and the map after each stage."""
    out, maps = model(x), model.features(x)
    result = {f"out/stage{i}": channels_first(m) for i, m in enumerate(maps, start=1)}
    return result | {"out/logits": out["logits"], "out/pre_head": out["features"][:, :, None, None]}


def module_output(fixture: Fixture, name: str, config: dict, x: jax.Array) -> jax.Array:
    """One partial attention block alone; its state dict has the prefix "m.<name>."."""
    kind, options = config["kind"], {}
    if kind != "pat_sp":
        options["n_div"] = config.get("n_div", 4)
    if kind == "pat_sf":
        options["num_heads"] = heads(config, "heads4")
    make, names = MODULES[kind]
    module = nnx.eval_shape(lambda: make(config["dim"], **options, rngs=Keys(0)))
    filled = fill(module, lambda path, shape: parameter(fixture.params, f"m/{name}/{path}", shape, names))
    return jax.jit(lambda module, x: module(x))(filled, x)
