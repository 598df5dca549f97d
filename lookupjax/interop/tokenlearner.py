"""TokenLearner: fixtures of scenic's modules, several of them in one file under names of their own."""

import math
import re
from typing import Any

import jax
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill
from lookupjax.layers.rngs import Keys
from lookupjax.models.tokenlearner import TokenFuser, TokenLearner

NAMES = (  # (our path, the reference's)
    (r"^convs/(\d+)/", r"Conv_\1/"),
    (r"^norm/", "LayerNorm_0/"),
    (r"^mix_norm(\d)/", r"fuser_mix_norm\1/"),
    (r"^mix/", "Dense_0/"),
    (r"^mlp/fc1/", "token_masking/Dense_0/"),
    (r"^mlp/fc2/", "token_masking/Dense_1/"),
)


def reference_name(path: str) -> str:
    """The reference's name of our parameter at `path`, inside one module."""
    for pattern, name in NAMES:
        path = re.sub(pattern, name, path)
    return path


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Every module's output under its name."""
    names = [name for name, options in fixture.config.items() if isinstance(options, dict)]
    return {f"out/{name}": run(fixture, name, fixture.config[name]) for name in names}


def run(fixture: Fixture, name: str, options: dict[str, Any]) -> jax.Array:
    """One module on its inputs."""
    inputs = [fixture.inputs[f"{name}/{i}"] for i in range(2) if f"{name}/{i}" in fixture.inputs]
    x, dim = inputs[0], inputs[0].shape[-1]

    def make() -> nnx.Module:
        common = dict(bottleneck=options.get("bottleneck_dim", 64), rngs=Keys(0))
        if len(inputs) == 2:
            return TokenFuser(dim, x.shape[1], normalize=options.get("use_normalization", True), **common)
        form = "v1" if f"{name}/Conv_0/kernel" in fixture.params else "v1.1"
        pool = "sum" if options.get("use_sum_pooling", True) else "mean"
        return TokenLearner(dim, options["num_tokens"], form=form, pool=pool, **common)

    def value(path: str, shape: tuple[int, ...]) -> Any:
        return fixture.params[f"{name}/{reference_name(path)}"]

    module = fill(nnx.eval_shape(make), value)
    if len(inputs) == 1 and x.ndim == 3:  # a flat map: square for the convolutions
        side = math.isqrt(x.shape[1])
        x = x.reshape(x.shape[0], *((side, side) if side**2 == x.shape[1] else (1, -1)), dim)
    return jax.jit(lambda module, *inputs: module(*inputs))(module, x, *inputs[1:])
