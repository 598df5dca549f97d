"""Dropout and stochastic depth: identities unless randomness is handed in.

Everywhere in lookupjax `rngs=None` means evaluation and `rngs=nnx.Rngs(key)` means training; no
module stores random state, so (seed, step) alone decide every mask.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Rate = float | Float[Array, ""]


def dropout(x: Float[Array, "*s"], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "*s"]:
    """Zeroes entries with probability `rate` and rescales the rest by 1 / (1 - rate).

    The mask is drawn once and kept for the backward pass. Left free, XLA draws it again inside everything
    that uses it, which for LookupViT-B/16 makes the TPU compiler run ten times as long.
    """
    if rngs is None or rate == 0.0:
        return x
    keep = jax.lax.optimization_barrier(jax.random.bernoulli(rngs.dropout(), 1.0 - rate, x.shape))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(
    branch: Float[Array, "b *s"], rate: Rate, rngs: nnx.Rngs | None, *, rescale: bool = True
) -> Float[Array, "b *s"]:
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per example.

    Kept branches are rescaled by 1 / (1 - rate), unless `rescale` is off (scenic's video models). `rate` may
    be traced (a value scanned over layers).
    """
    if rngs is None or (isinstance(rate, float) and rate == 0.0):
        return branch
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    mask = jax.random.bernoulli(rngs.drop_path(), keep, shape)
    kept = branch / keep.astype(branch.dtype) if rescale else branch
    return jnp.where(mask, kept, jnp.zeros_like(branch))


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Rates growing linearly from 0 at the first block to `rate` at the last."""
    return tuple(rate * i / max(depth - 1, 1) for i in range(depth))
