"""Pooling of maps (b, h, w, c) with PyTorch's conventions."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from lookupjax.layers.conv import Window, pair


def _pads(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    """(before, after) padding of an axis; with `ceil_mode` a last, partial window may hang over."""
    after = padding
    if ceil_mode:
        outputs = -(-(size + 2 * padding - window) // stride) + 1
        if (outputs - 1) * stride >= size + padding:  # no window starts inside the right padding
            outputs -= 1
        after = max(padding, (outputs - 1) * stride + window - size - padding)
    return padding, after


def _all_pads(x: Array, window: Window, stride: Window, padding: Window, ceil_mode: bool):
    sizes = zip(x.shape[1:3], pair(window), pair(stride), pair(padding))
    return tuple(_pads(*axis, ceil_mode) for axis in sizes)


def max_pool(
    x: Float[Array, "b h w c"],
    window: Window,
    *,
    stride: Window | None = None,
    padding: Window = 0,
    ceil_mode: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """Largest value of each window; padding never wins. `stride` defaults to the window."""
    stride = window if stride is None else stride
    pads = _all_pads(x, window, stride, padding, ceil_mode)
    return nnx.max_pool(x, pair(window), strides=pair(stride), padding=pads)


def avg_pool(
    x: Float[Array, "b h w c"],
    window: Window,
    *,
    stride: Window | None = None,
    padding: Window = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Float[Array, "b h2 w2 c"]:
    """Mean of each window, in float32, returned in the dtype of `x`.

    With `count_include_pad` the zeros of `padding` count as values, as in PyTorch; the overhang of
    `ceil_mode` never does.
    """
    stride = window if stride is None else stride
    pads = _all_pads(x, window, stride, padding, ceil_mode)

    def sums(y: Array, pads) -> Array:
        window_shape, strides = (1, *pair(window), 1), (1, *pair(stride), 1)
        return lax.reduce_window(y, 0.0, lax.add, window_shape, strides, ((0, 0), *pads, (0, 0)))

    counted = np.ones((1, *x.shape[1:3], 1), np.float32)
    if count_include_pad:
        inner = [(p, p) for p in pair(padding)]
        counted = np.pad(counted, ((0, 0), *inner, (0, 0)), constant_values=1)
        over = tuple((0, after - before) for before, after in pads)
    else:
        over = pads
    counts = sums(jnp.asarray(counted), over)
    return (sums(x.astype(jnp.float32), pads) / counts).astype(x.dtype)


def adaptive_matrix(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): bin i averages inputs floor(i n_in / n_out) .. ceil((i + 1) n_in / n_out) - 1."""
    matrix = np.zeros((n_out, n_in), np.float32)
    for i in range(n_out):
        first, last = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
        matrix[i, first:last] = 1.0 / (last - first)
    return matrix


def adaptive_avg_pool(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """PyTorch's AdaptiveAvgPool2d, as a matrix product per axis; also enlarges. Float32 inside."""
    if x.shape[1:3] == tuple(grid):
        return x
    y = x.astype(jnp.float32)
    rows, columns = (adaptive_matrix(n, m) for n, m in zip(x.shape[1:3], grid))
    y = jnp.einsum("bhwc,ih->biwc", y, rows, precision="highest")
    return jnp.einsum("biwc,jw->bijc", y, columns, precision="highest").astype(x.dtype)
