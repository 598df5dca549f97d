"""PyTorch state dicts into our modules: layouts, and the names that timm's transformer blocks share.

Everything here only renames, transposes and slices, so it works on NumPy arrays and under `jax.grad`
(which then gives gradients in the reference's own layout) alike.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill

StateDict = Mapping[str, Any]
BLOCK = {  # of models.vit.Block -> timm
    "attn_norm": "norm1",
    "attn.out": "attn.proj",
    "attn_scale": "ls1",
    "mlp_norm": "norm2",
    "mlp_scale": "ls2",
}


def channels_last(weight: Any) -> Any:
    """A PyTorch kernel (out, in, *window) as (*window, in, out)."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def rename(path: str, names: Mapping[str, str]) -> str:
    """Replaces whole components, or runs of them: {"attn.out": "attn.proj"} in "blocks.0.attn.out.bias"."""
    for ours, theirs in names.items():
        path = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\g<1>{theirs}", path)
    return path


def rename_start(path: str, names: Mapping[str, str]) -> str:
    """Replaces the longest of `names` that is the dotted path or its first components."""
    for ours in sorted(names, key=len, reverse=True):
        if f"{path}.".startswith(f"{ours}."):
            return names[ours] + path[len(ours) :]
    return path


def torch_value(params: StateDict, path: str, names: Mapping[str, str] = BLOCK) -> Any:
    """Our parameter at `path` ("blocks/0/attn/q/kernel") from a state dict, after renaming by `names`.

    Kernels are transposed; q, k and v are cut from a joint "qkv" or "kv" when the state dict has one.
    """
    module, _, kind = rename(path.replace("/", "."), names).rpartition(".")
    prefix = f"{module}." if module else ""
    suffix = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    name = prefix + suffix.get(kind, kind)
    part = re.fullmatch(r"(|.*[._])([qkv])\.(\w+)", name)
    joints = [j for j in ("qkv", "kv") if part and part[2] in j and f"{part[1]}{j}.{part[3]}" in params]
    if part and joints:
        joint = params[f"{part[1]}{joints[0]}.{part[3]}"]
        size, i = joint.shape[0] // len(joints[0]), joints[0].index(part[2])
        value = joint[i * size : (i + 1) * size]
    else:
        value = params[name]
    return channels_last(value) if kind == "kernel" else value


def reference_gradients(
    module: nnx.Module,
    value_of: Callable[[StateDict, str, tuple[int, ...]], Any],
    loss: Callable[[nnx.Module], jax.Array],
    fixture: Fixture,
) -> dict[str, jax.Array]:
    """d loss / d parameter under the reference's names and layouts.

    `value_of(params, path, shape)` is the adapter's own mapping; `module` may be abstract.
    """

    def of_reference(params: dict[str, jax.Array]) -> jax.Array:
        return loss(fill(module, lambda path, shape: value_of(params, path, shape)))

    return jax.jit(jax.grad(of_reference))(floats(fixture.params.arrays))


def floats(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The floating-point arrays: those with a gradient."""
    return {k: jnp.asarray(v) for k, v in arrays.items() if np.issubdtype(v.dtype, np.floating)}


def channels_first(x: Any) -> Any:
    """(b, *size, c) -> (b, c, *size), the layout of PyTorch's images and maps."""
    return jnp.moveaxis(x, -1, 1)


def images(x: Any) -> Any:
    """(b, c, *size) -> (b, *size, c), ours."""
    return jnp.moveaxis(x, 1, -1)
