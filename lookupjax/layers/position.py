"""Learned position tables and the resizing of token grids.

Resizing is separable: one small constant matrix per axis, applied in float32.
"""

import math
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.errors import UserError

METHODS = ("linear", "bilinear", "cubic", "zoom")


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(distance))


def _keys_cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5: the one of jax.image, Pillow and PyTorch with antialias."""
    x = np.abs(distance)
    near = ((1.5 * x - 2.5) * x) * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))


@lru_cache(maxsize=256)
def resize_matrix(n_in: int, n_out: int, method: str = "linear", antialias: bool = True) -> np.ndarray:
    """The (n_out, n_in) float32 matrix of a 1-D resize; every row sums to one.

    Args:
      method: "linear" or "cubic" interpolate at half-pixel centres; "bilinear" is "linear" without antialias;
        "zoom" is linear and corner-aligned (scipy.ndimage.zoom, order 1: the original ViT's fine-tuning).
      antialias: widen the kernel when shrinking (no effect on "bilinear", on "zoom" and when growing).
    """
    if method not in METHODS:
        raise UserError(f"resize method {method!r} is unknown; choose one of {METHODS}")
    if n_in == n_out:
        return np.eye(n_in, dtype=np.float32)
    if method == "zoom":
        centre = np.arange(n_out) * ((n_in - 1) / max(n_out - 1, 1))
        width = 1.0
    else:
        centre = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
        width = max(n_in / n_out, 1.0) if antialias and method != "bilinear" else 1.0
    kernel = _keys_cubic if method == "cubic" else _linear
    weight = kernel((centre[:, None] - np.arange(n_in)[None]) / width)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def resize_grid(
    x: Float[Array, "..."],
    grid: tuple[int, ...],
    *,
    method: str = "linear",
    antialias: bool = True,
) -> Float[Array, "..."]:
    """Resizes tokens on a grid, x of shape (..., *old_grid, d), to (..., *grid, d).

    Computed in float32 at highest precision, returned in the dtype of `x`.
    """
    first = x.ndim - 1 - len(grid)
    if x.shape[first:-1] == tuple(grid):
        return x
    y = x.astype(jnp.float32)
    for axis, n_out in enumerate(grid, start=first):
        if y.shape[axis] != n_out:
            matrix = resize_matrix(y.shape[axis], n_out, method, antialias)
            y = jnp.tensordot(matrix, y, axes=(1, axis), precision="highest")
            y = jnp.moveaxis(y, 0, axis)
    return y.astype(x.dtype)


def position_table(shape: tuple[int, ...], rngs: nnx.Rngs, std: float = 0.02) -> nnx.Param:
    """A learned table of the given shape (*grid, d), drawn from N(0, std)."""
    return nnx.Param(nnx.initializers.normal(std)(rngs.params(), shape))


def flatten_grid(x: Float[Array, "b ..."]) -> Float[Array, "b n d"]:
    """(b, *grid, d) -> (b, n, d), row-major (time first for video)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
