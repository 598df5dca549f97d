"""Patch and tubelet embedding: one linear map of every non-overlapping patch to a token."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError


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


class PatchEmbed(nnx.Module):
    """A convolution with stride = kernel = patch and VALID padding, as one matrix product.

    Images use `patch=(height, width)`, videos `patch=(frames, height, width)` (a tubelet).
    The kernel keeps the convolution's layout `(*patch, channels, dim)` of the public checkpoints.
    """

    def __init__(
        self,
        patch: tuple[int, ...],
        channels: int,
        dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch = tuple(patch)
        self.dtype = dtype
        shape = (*self.patch, channels, dim)
        flat = nnx.initializers.lecun_normal()(rngs.params(), (math.prod(shape[:-1]), dim))
        self.kernel = nnx.Param(flat.reshape(shape))
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
