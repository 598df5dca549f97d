"""Normalisation with float32 statistics and arithmetic, whatever the compute dtype.

Flax's own layers mix dtypes implicitly (an error under strict promotion) and default to the one-pass
variance E[x^2] - E[x]^2, which loses digits; these compute what the reference implementations do.
"""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError


def _over_channels(v: Float[Array, "d"], x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    return lax.broadcast_in_dim(v, x.shape, (x.ndim - 1,))


def layer_norm(
    x: Float[Array, "*s d"], scale: Float[Array, "d"], bias: Float[Array, "d"] | None, eps: float
) -> Float[Array, "*s d"]:
    """LayerNorm's arithmetic, float32 in and out."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    y = normed * _over_channels(scale, x)
    return y if bias is None else y + _over_channels(bias, x)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis; biased variance (arXiv 1607.06450)."""

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-6,
        bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,))) if bias else None
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias, self.eps).astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last (arXiv 1502.03167), with PyTorch's defaults.

    `momentum` is the weight of the old statistics: PyTorch's momentum 0.1 is 0.9 here. As there, the
    running variance is the unbiased one. Statistics are `nnx.BatchStat` variables. `affine=False` has
    neither scale nor bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        affine: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(jnp.ones((dim,))) if affine else None
        self.bias = nnx.Param(jnp.zeros((dim,))) if affine else None
        self.mean = nnx.BatchStat(jnp.zeros((dim,)))
        self.var = nnx.BatchStat(jnp.ones((dim,)))
        self.eps, self.momentum, self.dtype = eps, momentum, dtype

    def __call__(self, x: Float[Array, "b *s d"], *, train: bool = False) -> Float[Array, "b *s d"]:
        """Uses (and updates) batch statistics when `train`, else the running ones."""
        x = x.astype(jnp.float32)
        mean, var = self.mean[...], self.var[...]
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
            self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * unbiased
        gain = lax.rsqrt(var + self.eps)
        if self.scale is not None:
            gain *= self.scale[...]
        y = (x - _over_channels(mean, x)) * _over_channels(gain, x)
        if self.bias is not None:
            y += _over_channels(self.bias[...], x)
        return y.astype(self.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels together over the map of each example (arXiv 1803.08494)."""

    def __init__(
        self, dim: int, *, groups: int = 32, eps: float = 1e-6, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        if dim % groups:
            raise UserError(f"{dim} channels cannot be split into {groups} equal groups")
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,)))
        self.groups, self.eps, self.dtype = groups, eps, dtype

    def __call__(self, x: Float[Array, "b *s d"]) -> Float[Array, "b *s d"]:
        grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        normed = centred * lax.rsqrt(jnp.square(centred).mean((1, 3), keepdims=True) + self.eps)
        y = normed.reshape(x.shape)
        y = y * _over_channels(self.scale[...], y) + _over_channels(self.bias[...], y)
        return y.astype(self.dtype)
