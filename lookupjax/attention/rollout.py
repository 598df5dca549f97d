"""Attention rollout (arXiv 2005.00928): how much of every input token reaches every output token.

    S_l = 1/2 (mean over heads of A_l) + 1/2 I          rows sum to one, as those of A_l do
    R = S_L S_{L-1} ... S_1                             newest on the left

Attention comes as one head-averaged (b, n, n) array per layer, first layer first.
"""

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float


def with_residual(attention: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    """S_l: half the attention, half the residual connection."""
    return 0.5 * attention + 0.5 * jnp.eye(attention.shape[-1])[None]


def rollout(attention: Sequence[Float[Array, "b n n"]]) -> Float[Array, "b n n"]:
    """R (b, outputs, inputs): L - 1 products of n x n matrices."""
    return reduce(
        lambda total, layer: with_residual(layer) @ total, attention[1:], with_residual(attention[0])
    )


def rollout_row(attention: Sequence[Float[Array, "b n n"]], output: int = 0) -> Float[Array, "b n"]:
    """Row `output` of R, from the last layer back: L products of a vector and a matrix."""
    last = with_residual(attention[-1])[:, output]
    return reduce(
        lambda row, layer: jnp.einsum("bi,bij->bj", row, with_residual(layer)), reversed(attention[:-1]), last
    )
