"""DCAL's loss over its three branches (arXiv 2205.02151, section 3.3)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def balanced(losses: Float[Array, "n"], w: Float[Array, "n"]) -> Float[Array, ""]:
    """1/2 sum of (exp(-w_i) L_i + w_i), w learned (uncertainty weights, as in FairMOT, arXiv 2004.01888)."""
    return 0.5 * (jnp.exp(-w) * losses + w).sum()
