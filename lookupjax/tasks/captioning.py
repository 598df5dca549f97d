"""Captioning: the next word of a caption, given the image and the words before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lookupjax.errors import UserError
from lookupjax.tasks.base import Batch, Figures, Outputs, Task


def token_losses(
    logits: Float[Array, "b t v"], target: Int[Array, "b t"], smoothing: float = 0.0
) -> Float[Array, "b t"]:
    """KL(target distribution || softmax): 1 - smoothing on the word, the rest evenly on the V - 1 others.

    That is the cross-entropy less a constant, so that 0 is the least there is (GIT's loss).
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    word = jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
    if not smoothing:
        return -word
    others = smoothing / (logits.shape[-1] - 1)
    entropy = -(1 - smoothing) * jnp.log(1 - smoothing) - smoothing * jnp.log(others)
    return -(1 - smoothing) * word - others * (log_probs.sum(-1) - word) - entropy


def mean_over(values: Float[Array, "b t"], weight: Bool[Array, "b t"]) -> Float[Array, ""]:
    """The mean of what has a weight."""
    weight = weight.astype(jnp.float32)
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1.0)


@dataclass(frozen=True)
class Captioning(Task):
    """Cross-entropy of the words and the end token, a mean over all of them in the batch.

    Batches have "caption" (b, t): start token, words, end token, padding; and "image", or the encoder's
    "tokens" in its place.

    Args:
      label_smoothing: share of the target spread evenly over the other words.
      pad: token that is neither learned nor scored.
      parallel: share of the examples whose words are all hidden and predicted at once (CapPa: 0.75); the
        decoder then needs mask_token=True.
    """

    label_smoothing: float = 0.1
    pad: int = 0
    parallel: float = 0.0

    @classmethod
    def for_model(cls, model: nnx.Module, **options: Any) -> "Captioning":
        """Raises UserError for a model that writes no text, or cannot predict in parallel."""
        decoder = getattr(model, "decoder", None)
        if not hasattr(decoder, "vocab_size"):
            raise UserError(f"the task captioning needs a captioner, not {type(model).__name__}")
        task = cls(**options)
        if task.parallel and decoder.mask_token is None:
            raise UserError(
                "task.parallel hides words behind a token of its own: set model.decoder.mask_token=True"
            )
        return task

    def train_loss(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> tuple[Float[Array, ""], Figures]:
        text, causal = self.caption(batch)[:, :-1], jnp.ones((batch["caption"].shape[0],), bool)
        if self.parallel:
            causal = ~jax.random.bernoulli(rngs.parallel(), self.parallel, causal.shape)
            text = jnp.where(causal[:, None], text, model.decoder.mask_token)
        outputs = model(
            batch.get("image"), text, tokens=batch.get("tokens"), causal=causal, rngs=rngs, **call
        )
        return self.loss(outputs, batch)

    def predict(self, model: nnx.Module, batch: Batch, **call: Any) -> Outputs:
        text = self.caption(batch)[:, :-1]
        return model(batch.get("image"), text, tokens=batch.get("tokens"), **call)

    def caption(self, batch: Batch) -> Int[Array, "b t"]:
        """Raises UserError for batches without captions."""
        if "caption" not in batch:
            raise UserError(
                f"there is no 'caption' in {sorted(batch)}: add the transform dict(name='captions') to "
                "config.data.train_transforms and eval_transforms"
            )
        return batch["caption"]

    def loss(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        target = batch["caption"][:, 1:]
        scored = target != self.pad
        losses = token_losses(outputs["logits"], target, self.label_smoothing)
        correct = (outputs["logits"].argmax(-1) == target).astype(jnp.float32)
        return mean_over(losses, scored), {"accuracy": mean_over(correct, scored)}

    def evaluate(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, "b"]]:
        """nll and accuracy per word (end token included), a mean over each caption."""
        target = batch["caption"][:, 1:]
        scored = (target != self.pad).astype(jnp.float32)
        count = jnp.maximum(scored.sum(1), 1.0)
        correct = (outputs["logits"].argmax(-1) == target).astype(jnp.float32)
        nll = token_losses(outputs["logits"], target)
        return {"nll": (nll * scored).sum(1) / count, "accuracy": (correct * scored).sum(1) / count}


TASK = Captioning
