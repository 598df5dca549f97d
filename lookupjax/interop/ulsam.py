"""ULSAM: the names of Nandan91/ULSAM, where every subspace has modules of its own."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.attention.mixer import record_taps
from lookupjax.attention.ulsam import SubspaceAttention
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import StateDict, channels_first, images, torch_value
from lookupjax.layers.rngs import Keys

NAMES = {
    "scale": "conv_dws/weight",
    "shift": "conv_dws/bias",
    "norm": "bn_dws",
    "point": "conv_point/weight",
    "point_bias": "conv_point/bias",
    "point_norm": "bn_point",
}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> jax.Array:
    """Our parameter at `path`: the subspaces' own, one after the other."""
    head, _, leaf = path.partition("/")
    name = f"{NAMES[head]}/{leaf}" if leaf else NAMES[head]
    count = len({key.split(".")[1] for key in params if key.startswith("subspaces.")})
    parts = [torch_value(params, f"subspaces/{i}/{name}", {}) for i in range(count)]
    joined = jnp.concatenate([part.reshape(-1) for part in parts])
    return joined.reshape(shape) if joined.size == math.prod(shape) else joined


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    dim, groups = fixture.config["nin"], fixture.config["num_splits"]
    module = nnx.eval_shape(lambda: SubspaceAttention(dim, groups, rngs=Keys(0)))
    filled = fill(module, lambda path, shape: parameter(fixture.params, path, shape))

    @jax.jit
    def run(module: nnx.Module, x: jax.Array) -> dict[str, jax.Array]:
        tokens = x.reshape(x.shape[0], -1, dim)
        y, taps = record_taps(module, tokens, grid=x.shape[1:3], names=("scores", "weights"))
        result = {"out/y": channels_first(y.reshape(x.shape))}
        for i in range(groups):
            for name, tap in (("pre_softmax", "/scores"), ("attn", "/weights")):
                result[f"out/{name}_subspace{i}"] = taps[tap][:, i].reshape(-1, 1, *x.shape[1:3])
        return result

    return run(filled, images(fixture.inputs["x"]))
