"""Convolutions with PyTorch's symmetric integer padding, which published models are written in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.layers.norm import BatchNorm

Window = int | tuple[int, int]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def pair(value: Window) -> tuple[int, int]:
    """3 -> (3, 3)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def conv(
    d_in: int,
    d_out: int,
    kernel: Window,
    *,
    stride: Window = 1,
    padding: Window = 0,
    dilation: Window = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: nnx.Initializer | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 2-D convolution of (b, h, w, d_in); kernel (kh, kw, d_in / groups, d_out).

    Args:
      padding: zeros on both sides of each axis, so that an axis gets (n + 2 p - k) // stride + 1 outputs.
      kernel_init: default lecun-normal.
    """
    return nnx.Conv(
        d_in,
        d_out,
        pair(kernel),
        strides=pair(stride),
        padding=[(p, p) for p in pair(padding)],
        kernel_dilation=pair(dilation),
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=kernel_init or nnx.initializers.lecun_normal(),
        dtype=dtype,
        rngs=rngs,
    )


class ConvNorm(nnx.Module):
    """activation(BatchNorm(conv(x))), the convolution without bias.

    Args:
      activation: a key of `ACTIVATIONS`.
      options: of `conv`.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        kernel: Window,
        *,
        activation: str = "none",
        eps: float = 1e-5,
        momentum: float = 0.9,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options,
    ):
        self.conv = conv(d_in, d_out, kernel, bias=False, dtype=dtype, rngs=rngs, **options)
        self.norm = BatchNorm(d_out, eps=eps, momentum=momentum, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        """`train` normalises with (and updates) the batch's statistics."""
        return ACTIVATIONS[self.activation](self.norm(self.conv(x), train=train))
