"""Gates of channels from their means over the map: squeeze-and-excitation and its relatives."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.layers.init import torch_linear

GATES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


class SqueezeExcite(nnx.Module):
    """x gate(fc2(ReLU(fc1(mean x)))), the mean in float32 (arXiv 1709.01507).

    The layers are torchvision's 1x1 convolutions.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        gate: str = "sigmoid",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.fc1 = torch_linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = torch_linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.gate = gate

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean = x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
        return x * GATES[self.gate](self.fc2(jax.nn.relu(self.fc1(mean))))[:, None, None]


class EfficientChannelGate(nnx.Module):
    """x sigmoid(conv1d over the channels of mean x) (ECA-Net, arXiv 1910.03151).

    The kernel's length is (log2(dim) + 1) / 2, rounded up to an odd number, at least 3.
    """

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        length = int((math.log2(dim) + 1) / 2)
        half = max(length if length % 2 else length + 1, 3) // 2
        window, padding = (2 * half + 1,), ((half, half),)
        self.conv = nnx.Conv(1, 1, window, padding=padding, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean = x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
        return x * jax.nn.sigmoid(self.conv(mean[..., None]))[:, None, None, :, 0]
