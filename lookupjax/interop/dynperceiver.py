"""Dynamic Perceiver: the names of LeapLabTHU/Dynamic_Perceiver with its RegNetY host."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.analysis.early_exit import (
    accuracy_and_cost,
    confidence_and_hits,
    exit_shares,
    find_thresholds,
)
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.regnet import block_path
from lookupjax.interop.state_dict import StateDict, channels_first, images, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.dynperceiver import EXITS, DynPerceiver
from lookupjax.tasks.early_exit import EarlyExit

OPTIONS = {  # reference argument -> ours
    "num_classes": "num_classes",
    "num_latents": "latents",
    "num_SA_heads": "sa_heads",
    "SA_widening_factor": "sa_widening",
    "depth_factor": "depth_factor",
    "with_x2z": "x2z",
    "with_z2x": "z2x",
    "with_last_CA": "last_z2x",
    "with_dwc": "dwc",
    "with_isc": "shortcuts",
}
PLACES = (  # (our path, the reference's)
    (r"cnn/stem/", "cnn_stem/"),
    (r"x2z/(\d+)/dwc/", "dwc{0+}_x2z/"),
    (r"x2z/(\d+)/cross/", "cross_att{0+}_x2z/"),
    (r"z2x/(\d+)/cross/", "cross_att{0++}_z2x/"),
    (r"last_z2x/cross/", "last_cross_att_z2x/"),
    (r"blocks/(\d+)/(\d+)/", "self_att{0+}/{1}/"),
    (r"shrink/(\d+)/mix_norm/", "token_mixer/{0}/0/"),
    (r"shrink/(\d+)/mix/", "token_mixer/{0}/1/"),
    (r"shrink/(\d+)/expand_norm/", "token_expander/{0}/0/"),
    (r"shrink/(\d+)/expand/", "token_expander/{0}/1/"),
    (r"shortcut([34])/linear/", "isc{0}/0/"),
    (r"shortcut([34])/norm/", "isc{0}/1/"),
    (r"exit_early3/head/", "early_classifier3/"),
    (r"exit_(att|cnn)/head/", "classifier_{0}/"),
    (r"exit_merge/norm/", "classifier_merge/0/"),
    (r"exit_merge/head/", "classifier_merge/1/"),
)
PARTS = {  # of a layer
    "conv": "0",
    "norm": "1",
    "q_norm": "cross_attn.q_norm",
    "kv_norm": "cross_attn.kv_norm",
    "attn_norm": "self_attn.norm",
    "attn.pos": "attention.relative_position_bias",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.out": "attention.o_proj",
    "mlp_norm": "mlp.layernorm",
}


def reference_path(path: str) -> str:
    """Our path with the reference's modules, still ending in our kind of leaf."""
    if path.startswith("cnn/stages/"):
        return block_path(path.removeprefix("cnn/"), "cnn_body")
    for pattern, template in PLACES:
        match = re.match(pattern, path)
        if match:
            place, rest = template, path[match.end() :]
            for i, text in enumerate(match.groups()):
                place = place.replace(f"{{{i}}}", text)
                for n in (1, 2):  # the reference counts from 1, z2x from 2
                    place = place.replace(f"{{{i}{'+' * n}}}", str(int(text) + n) if text.isdigit() else text)
            inside = "self_attn/" if path.startswith("blocks/") else "cross_attn/"
            return place + (inside + rest if rest.startswith("attn/") else rest)
    return path


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    value = torch_value(params, reference_path(path), PARTS)
    return value.reshape(shape) if value.size == math.prod(shape) else value  # 1x1 convolutions, positions


def build(fixture: Fixture) -> DynPerceiver:
    """The model a fixture's config describes, with the fixture's parameters."""
    config = fixture.config
    options = {ours: tuples(config[theirs]) for theirs, ours in OPTIONS.items() if theirs in config}
    if "depth_factor" in options:
        options["depth_factor"] = tuple(map(float, options["depth_factor"]))
    host = {key: tuples(value) for key, value in config["cnn"].items()}
    model = nnx.eval_shape(lambda: DynPerceiver(host="regnet_mu", host_options=host, **options, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


@jax.jit
def forward(model: DynPerceiver, x: jax.Array) -> dict[str, jax.Array]:
    """The exits and what both branches hold after every stage."""
    out = model(x)
    result = {f"out/{name.replace('logits_', 'y_')}": out[name] for name in EXITS[:-1]}
    result["out/y_merge"] = out["logits"]
    for i, (x_map, z) in enumerate(model.stages(x), 1):
        result |= {f"out/x_stage{i}": channels_first(x_map), f"out/z_stage{i}": z}
    return result


def losses(fixture: Fixture) -> dict[str, jax.Array]:
    """[weighted cross-entropy, sum of distillation terms, total] for every set of weights."""
    exits = {name: fixture.inputs[name.replace("logits_", "y_")] for name in EXITS[:-1]}
    exits["logits"] = fixture.inputs["y_merge"]
    result = {}
    for i, s in enumerate(fixture.config["sets"]):
        task = EarlyExit(
            heads=EXITS,
            weights=(s["att"], s["att"], s["cnn"], s["merge"]),
            distillation=s["alpha_kd"],
            temperature=s["T_kd"],
        )
        total, figures = task.loss(exits, {"label": fixture.inputs["target"]})
        result[f"out/loss_{i}"] = jnp.stack([figures["task_loss"], figures["distillation"], total])
    return result


def thresholds(fixture: Fixture) -> dict[str, jax.Array]:
    """Exit shares, thresholds found on the validation probabilities, accuracy and cost on both splits."""
    x, costs = fixture.inputs, fixture.config["flops"]
    costs = [float(cost) for cost in costs]
    shares = exit_shares(len(costs))[list(fixture.config["distribution_index"])]
    val, test = (confidence_and_hits(x[f"{s}_probs"], x[f"{s}_target"]) for s in ("val", "test"))
    rows = []
    for share in shares:
        limits = find_thresholds(val[0], share)
        figures = [accuracy_and_cost(*split, limits, costs) for split in (val, test)]
        rows.append([v for accuracy, cost in figures for v in (100 * accuracy, cost)] + list(limits))
    return {"out/probs": jnp.asarray(shares), "out/rows": jnp.asarray(rows)}


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    kinds = {"loss": losses, "threshold": thresholds}
    if fixture.config.get("kind") in kinds:
        return kinds[fixture.config["kind"]](fixture)
    return forward(build(fixture), images(fixture.inputs["x"]))
