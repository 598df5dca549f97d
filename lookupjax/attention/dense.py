"""Attention inside windows, groups and blocks written as one map over all tokens, for who reads the taps.

Cut `token_numbers` as a mixer cuts its tokens, and they say which token stands where.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def token_numbers(grid: tuple[int, ...]) -> Float[Array, "1 h w 1"]:
    """1, 2, 3, ... in raster order. Zeros that a mixer pads them with are no token."""
    return jnp.arange(1.0, 1 + math.prod(grid)).reshape(1, *grid, 1)


def dense_map(
    weights: Float[Array, "..."],
    queries: Float[Array, "#b k n"],
    keys: Float[Array, "#b k m"],
    size: tuple[int, int],
) -> Float[Array, "b h q p"]:
    """The map of all `size` = (queries, keys) tokens; of a token that stands in several places, the sum.

    What is spent on padding is left out, so rows may sum to less.

    Args:
      weights: (b, k, h, n, m) or (b k, h, n, m), of k windows.
      queries, keys: which token stands at each place, from 1; 0 for none.
    """
    windows, (h, n, m) = queries.shape[1], weights.shape[-3:]
    weights = weights.astype(jnp.float32).reshape(-1, windows, h, n, m).swapaxes(1, 2)
    rows, columns = (
        jnp.broadcast_to(place, (len(weights), *place.shape[1:])).astype(jnp.int32)
        for place in (queries, keys)
    )

    def one(weights: Array, rows: Array, columns: Array) -> Array:
        full = jnp.zeros((h, size[0] + 1, size[1] + 1))
        return full.at[:, rows[:, :, None], columns[:, None, :]].add(weights)[:, 1:, 1:]

    return jax.vmap(one)(weights, rows, columns)
