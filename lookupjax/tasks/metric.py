"""Losses that compare embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def squared_distances(a: Float[Array, "m d"], b: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """|a_i - b_j|^2, not below 0."""
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2.0 * (a @ b.T)
    return jnp.maximum(squares, 0.0)


def triplet_loss(
    anchor: Float[Array, "b d"],
    positive: Float[Array, "b d"],
    negative: Float[Array, "b d"],
    margin: float,
) -> Float[Array, "b"]:
    """max(0, |a - p|^2 - |a - n|^2 + margin) of each triplet (FaceNet, arXiv 1503.03832)."""
    to_positive = jnp.square(anchor - positive).sum(1)
    to_negative = jnp.square(anchor - negative).sum(1)
    return jnp.maximum(to_positive - to_negative + margin, 0.0)


def batch_hard_triplet(
    features: Float[Array, "b d"], label: Int[Array, "b"], margin: float = 0.3
) -> Float[Array, ""]:
    """Each example's farthest positive against its nearest negative, Euclidean (arXiv 1703.07737).

    The mean is over the examples that have a positive and a negative in the batch; 0 without any.
    """
    distance = jnp.sqrt(jnp.maximum(squared_distances(features, features), 1e-12))
    same = label[:, None] == label[None]
    positive = same & ~jnp.eye(len(label), dtype=bool)
    farthest = jnp.where(positive, distance, -jnp.inf).max(1)
    nearest = jnp.where(same, jnp.inf, distance).min(1)
    counts = positive.any(1) & ~same.all(1)
    loss = jnp.maximum(jnp.where(counts, farthest - nearest, -jnp.inf) + margin, 0.0)
    return loss.sum() / jnp.maximum(counts.sum(), 1).astype(loss.dtype)
