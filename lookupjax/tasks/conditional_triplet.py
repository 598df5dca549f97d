"""Triplets within one attribute at a time: what trains a separate embedding space for each (CCAN).

A batch's "attributes" (b, c) hold each image's value of every attribute. Every image is an anchor under
every attribute; its positive, another image with the same value, and its negative, one with another value,
are drawn from the batch. The expected loss is that of drawing triplets for one attribute at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lookupjax.errors import UserError
from lookupjax.tasks.base import Batch, Figures, Task
from lookupjax.tasks.metric import triplet_loss


def draw(allowed: Bool[Array, "*s n"], key: jax.Array) -> Int[Array, "*s"]:
    """For each row the index of one of the allowed entries, uniformly; 0 where there is none."""
    noise = jax.random.uniform(key, allowed.shape)
    return jnp.where(allowed, noise, -1.0).argmax(-1)


def in_every_space(embedding: Float[Array, "b ..."], spaces: int) -> Float[Array, "c b e"]:
    """Embeddings (b, c, e) by space; a model with a single space (b, e) has the same one for each."""
    if embedding.ndim == 2:
        embedding = jnp.broadcast_to(embedding[:, None], (len(embedding), spaces, embedding.shape[1]))
    return embedding.swapaxes(0, 1)


@dataclass(frozen=True)
class ConditionalTriplet(Task):
    """max(0, |a - p|^2 - |a - n|^2 + margin), over anchors and attributes that have a positive and negative.

    Args:
      margin: for embeddings of length one.
      output: the model's output to train: (b, attributes, e), or (b, e) for one space for all attributes.
      key: the batch's attribute values.
    """

    margin: float = 0.3
    output: str = "embedding"
    key: str = "attributes"

    def values(self, batch: Batch) -> Int[Array, "c b"]:
        """Attribute values, by attribute.

        Raises:
          UserError: when the data have none.
        """
        if self.key not in batch:
            raise UserError(
                f"the task conditional_triplet needs {self.key!r} in the batch, which has {sorted(batch)}; "
                "use a dataset with attributes, such as coloured_digits"
            )
        return batch[self.key].T

    def spaces(self, outputs: Mapping[str, Array], count: int) -> Float[Array, "c b e"]:
        """Embeddings of length one, by space."""
        embedding = in_every_space(outputs[self.output], count)
        length = jnp.sqrt(jnp.square(embedding).sum(-1, keepdims=True))
        return embedding / jnp.maximum(length, 1e-12)

    def train_loss(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> tuple[Float[Array, ""], Figures]:
        value = self.values(batch)
        anchor = self.spaces(model(batch["image"], rngs=rngs, **call), len(value))
        same = value[:, :, None] == value[:, None]
        positives, negatives = same & ~jnp.eye(same.shape[-1], dtype=bool)[None], ~same
        choices = [draw(allowed, rngs.triplets())[..., None] for allowed in (positives, negatives)]
        positive, negative = (jnp.take_along_axis(anchor, index, axis=1) for index in choices)
        a, p, n = (x.reshape(-1, x.shape[-1]) for x in (anchor, positive, negative))
        losses = triplet_loss(a, p, n, self.margin)
        counts = (positives.any(-1) & negatives.any(-1)).reshape(-1).astype(jnp.float32)
        mean = 1.0 / jnp.maximum(counts.sum(), 1.0)
        active = (losses > 0).astype(jnp.float32)
        return (losses * counts).sum() * mean, {"active": (active * counts).sum() * mean}

    def evaluate(self, outputs: Mapping[str, Array], batch: Batch) -> dict[str, Float[Array, "b"]]:
        """nearest: share of attributes whose value the nearest other image of the batch has, too."""
        value = self.values(batch)
        embedding = self.spaces(outputs, len(value))
        similarity = jnp.einsum("cie,cje->cij", embedding, embedding)
        real = batch["mask"][None, None] > 0 if "mask" in batch else True
        other = ~jnp.eye(value.shape[1], dtype=bool)[None] & real
        nearest = jnp.where(other, similarity, -jnp.inf).argmax(-1)
        right = jnp.take_along_axis(value, nearest, axis=1) == value
        return {"nearest": right.astype(jnp.float32).mean(0)}


TASK = ConditionalTriplet
