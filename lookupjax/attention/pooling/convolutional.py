"""Poolings from convolutional networks: they see the tokens as a map (b, h, w, d)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.pooling.base import Pooling
from lookupjax.errors import UserError
from lookupjax.layers.init import torch_kernel, torch_linear
from lookupjax.layers.norm import BatchNorm

Grid = tuple[int, ...] | None


def as_map(x: Float[Array, "b n d"], grid: Grid) -> Float[Array, "b h w d"]:
    """The tokens on their grid; without one it is taken to be square.

    Raises:
      UserError: when that cannot be.
    """
    if grid is None:
        side = math.isqrt(x.shape[1])
        grid = (side, side)
    if math.prod(grid) != x.shape[1]:
        raise UserError(f"{x.shape[1]} tokens are not a map of {grid}: pass grid=(height, width)")
    return x.reshape(x.shape[0], *grid, x.shape[2])


class Dolg(Pooling):
    """mean(a f), f = u / |u|, a = softplus(conv(ReLU(u))), u = BN(conv(x)) (DOLG's local branch,
    arXiv 2108.02927); both convolutions are 1x1."""

    def __init__(self, dim: int, *, width: int | None = None, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.width = dim if width is None else width
        self.project = torch_linear(dim, self.width, bias=True, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(self.width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.score = torch_linear(self.width, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b e"]:
        u = self.norm(self.project(x), train=rngs is not None)
        weights = jax.nn.softplus(self.score(jax.nn.relu(u)).astype(jnp.float32))
        self.tap("weights", weights.transpose(0, 2, 1))
        f = u.astype(jnp.float32)
        f = f / jnp.maximum(jnp.linalg.norm(f, axis=-1, keepdims=True), 1e-12)
        return (weights * f).mean(1).astype(x.dtype)


class Cbam(Pooling):
    """mean(ReLU(x + s c x)): c gates channels, s positions (CBAM, arXiv 1807.06521).

    c = sigmoid(MLP(mean x) + MLP(max x)) over positions, s = sigmoid(BN(conv [mean y; max y])) over
    channels of y = c x. The MLP narrows to `ratio` of the channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel: int = 7,
        ratio: float = 1 / 16,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width = dim
        hidden = max(1, int(dim * ratio + 0.5))
        self.fc1 = torch_linear(dim, hidden, bias=False, dtype=dtype, rngs=rngs)
        self.fc2 = torch_linear(hidden, dim, bias=False, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(
            2, 1, (kernel, kernel), use_bias=False, kernel_init=torch_kernel, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(1, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: Grid = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b d"]:
        x = as_map(x, grid)
        squeezed = (x.mean((1, 2)), x.max((1, 2)))
        channel = sum(self.fc2(jax.nn.relu(self.fc1(s))) for s in squeezed)
        y = x * jax.nn.sigmoid(channel)[:, None, None]
        summary = jnp.stack([y.mean(-1), y.max(-1)], axis=-1)
        gate = jax.nn.sigmoid(self.norm(self.conv(summary), train=rngs is not None))
        self.tap("weights", gate.reshape(gate.shape[0], 1, -1))
        return jax.nn.relu(x + y * gate).mean((1, 2))
