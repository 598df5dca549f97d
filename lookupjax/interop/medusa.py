"""MEDUSA: the names of our data sheet's reference model, which has a plain trunk."""

import re
from typing import Any

import jax
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, channels_first, images, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.medusa import MEDUSA

NAMES = {
    "body": "ga",
    "heads": "ga.scale_heads",
    "down.0": "e1",
    "down.1": "e2",
    "down.2": "e3",
    "up.0": "d3",
    "up.1": "d2",
    "up.2": "d1",
    "reduce": "c1",
    "expand": "c2",
}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    path = re.sub(r"^head/", "fc/", path.removeprefix("trunk/"))
    return torch_value(params, path, NAMES)


def build(fixture: Fixture) -> MEDUSA:
    """The model a fixture's config describes, with the fixture's parameters."""
    config = fixture.config
    kwargs = dict(
        trunk="plain",
        channels=config["ci"],
        widths=tuples(config["widths"]),
        body_width=config["gw"],
        body_channels=config["gc"],
        num_classes=config["classes"],
    )
    abstract = nnx.eval_shape(lambda: MEDUSA(**kwargs, rngs=Keys(0)))
    return fill(abstract, lambda path, shape: parameter(fixture.params, path, shape))


def forward(model: MEDUSA, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and its attention."""
    maps, gates = model.attended(x)
    return {
        "out/logits": model(x)["logits"],
        "out/body": channels_first(model.body(x)),
        **{f"out/global{j}": channels_first(gate) for j, gate in enumerate(gates)},
        **{f"out/feature{j}": channels_first(x) for j, x in enumerate(maps)},
    }


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    return jax.jit(forward)(build(fixture), images(fixture.inputs["x"]))
