"""Parts of convolutional networks that keep a map's shape and treat its channels one by one."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.layers.conv import conv
from lookupjax.layers.mlp import linear


class ChannelAffine(nnx.Module):
    """scale * x + bias per channel: a LayerScale (arXiv 2103.17239) with a bias."""

    def __init__(self, dim: int, init: float = 1.0):
        self.scale = nnx.Param(jnp.full((dim,), float(init)))
        self.bias = nnx.Param(jnp.zeros((dim,)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale, bias = (p[...].astype(x.dtype)[None, None, None] for p in (self.scale, self.bias))
        return x * scale + bias


class ResidualDepthwise(nnx.Module):
    """x + depthwise convolution of x: a positional encoding by convolution (arXiv 2102.10882)."""

    def __init__(
        self,
        dim: int,
        kernel: int = 3,
        *,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(
            dim,
            dim,
            kernel,
            padding=kernel // 2,
            groups=dim,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv(x)


class GlobalResponseNorm(nnx.Module):
    """(gamma * n + 1) * x + beta with n = g / mean(g), g the L2 norm of each channel (arXiv 2301.00808)."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.gamma = nnx.Param(jnp.zeros((dim,)))
        self.beta = nnx.Param(jnp.zeros((dim,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x.astype(jnp.float32)
        energy = jnp.square(y).sum((1, 2), keepdims=True)
        alive = energy > 0  # the root has no gradient at zero
        response = jnp.where(alive, jnp.sqrt(jnp.where(alive, energy, 1.0)), 0.0)
        response = response / (response.mean(-1, keepdims=True) + self.eps)
        gain = self.gamma[...][None, None, None] * response + 1.0
        return (gain * y + self.beta[...][None, None, None]).astype(x.dtype)


class SqueezeExcite(nnx.Module):
    """x * sigmoid(fc2(gelu(fc1(mean of x over the map)))) (arXiv 1709.01507)."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = linear(dim, hidden, rngs=rngs)
        self.fc2 = linear(hidden, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean = x.astype(jnp.float32).mean((1, 2))
        gate = jax.nn.sigmoid(self.fc2(jax.nn.gelu(self.fc1(mean), approximate=False)))
        return x * gate.astype(x.dtype)[:, None, None]
