"""Squeeze-and-excitation (arXiv 1709.01507): gates of channels from their means over the map."""

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
    """x gate(fc2(ReLU(fc1(mean x)))), the mean in float32. The layers are torchvision's 1x1 convolutions."""

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
