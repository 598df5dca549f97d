"""Patch and tubelet embedding: one linear map of every non-overlapping patch to a token."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError

INFLATIONS = ("central", "average")


def token_grid(size: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens along each patched axis; pixels (or frames) left over at the far edge are dropped.

    Raises:
      UserError: when `size` and `patch` differ in rank or the input is smaller than one patch.
    """
    if len(size) != len(patch):
        raise UserError(
            f"the model cuts {len(patch)} axes into patches of {patch}, but the input has "
            f"{len(size)} such axes: {size}"
        )
    if any(n < p for n, p in zip(size, patch)):
        raise UserError(f"input of size {size} is smaller than one patch {patch}; use a larger input")
    return tuple(n // p for n, p in zip(size, patch))


def inflate(kernel: Any, frames: int, how: str) -> Any:
    """An image's patch kernel (h, w, c, d) as that of tubelets, (frames, h, w, c, d).

    "central": in the middle frame (index frames // 2), zeros around it: the tubelet's token is that frame's.
    "average": a share of 1 / frames in each. A clip of equal frames has the image's tokens either way.

    Raises:
      UserError: for another `how`.
    """
    xp = jnp if isinstance(kernel, jax.Array) else np
    if frames == 1:
        return kernel[None]
    if how == "central":
        empty = xp.zeros_like(kernel)
        return xp.stack([kernel if i == frames // 2 else empty for i in range(frames)])
    if how == "average":
        return xp.stack([kernel / frames] * frames)
    raise UserError(f"tubelet_init={how!r} has no place for an image's kernel; use one of {INFLATIONS}")


def image_to_video(path: str, value: Any, shape: tuple[int, ...], how: str) -> Any:
    """An image model's array for the parameter `path` of a video model, which has a leading axis more.

    Patch kernels are inflated, position tables (named "pos...") repeated over time; others stay as they are.
    """
    if len(value.shape) + 1 != len(shape):
        return value
    if path.endswith("embed/kernel"):
        return inflate(value, shape[0], how)
    if path.rpartition("/")[2].startswith("pos"):
        xp = jnp if isinstance(value, jax.Array) else np
        return xp.repeat(value[None], shape[0], axis=0)
    return value


class PatchEmbed(nnx.Module):
    """A convolution with stride = kernel = patch and VALID padding, as one matrix product.

    Images use `patch=(height, width)`, videos `patch=(frames, height, width)` (a tubelet).
    The kernel keeps the convolution's layout `(*patch, channels, dim)` of the public checkpoints.

    Args:
      time: initial kernel of tubelets: "random"; "central", zero in all frames but the middle one; "average",
        the same in every frame. The scale is that of the whole kernel's fan-in in all of them (scenic).
    """

    def __init__(
        self,
        patch: tuple[int, ...],
        channels: int,
        dim: int,
        *,
        time: str = "random",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if time not in ("random", *INFLATIONS):
            raise UserError(f"tubelet_init={time!r} is unknown; choose one of {('random', *INFLATIONS)}")
        self.patch = tuple(patch)
        self.dtype = dtype
        shape = (*self.patch, channels, dim)
        flat = nnx.initializers.lecun_normal()(rngs.params(), (math.prod(shape[:-1]), dim))
        kernel = flat.reshape(shape)
        if time != "random" and len(patch) == 3:
            frames = patch[0]
            kernel = inflate(kernel[frames // 2] * (frames if time == "average" else 1), frames, time)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros((dim,)))

    def __call__(self, x: Float[Array, "b *size c"]) -> Float[Array, "b *grid d"]:
        """Returns one token per patch on the patch grid, row-major (time first for video)."""
        grid = token_grid(x.shape[1:-1], self.patch)
        batch, channels = x.shape[0], x.shape[-1]
        kernel = self.kernel[...]
        if channels != kernel.shape[-2]:
            raise UserError(f"the model expects {kernel.shape[-2]} channels, the input has {channels}")
        x = x[(slice(None), *(slice(0, g * p) for g, p in zip(grid, self.patch)))]
        x = x.reshape(batch, *(n for gp in zip(grid, self.patch) for n in gp), channels)
        k = len(grid)
        grid_axes, patch_axes = range(1, 2 * k, 2), range(2, 2 * k + 1, 2)
        x = x.transpose(0, *grid_axes, *patch_axes, 2 * k + 1).reshape(batch, *grid, -1)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        tokens = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        bias = self.bias[...].astype(self.dtype)
        return tokens + jax.lax.broadcast_in_dim(bias, tokens.shape, (tokens.ndim - 1,))
