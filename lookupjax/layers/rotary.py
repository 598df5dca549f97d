"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the form of LLaMA: halves are rotated."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate(x: Float[Array, "b h n c"], position: Float[Array, "n"], theta: float) -> Float[Array, "b h n c"]:
    """Turns the pair (x_i, x_{i + c/2}) by the angle position * theta^(-2 i / c); float32 inside."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[:, None] * frequency[None]
    cos, sin = jnp.cos(angle)[None, None], jnp.sin(angle)[None, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
