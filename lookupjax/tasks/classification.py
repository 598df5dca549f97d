"""Image classification with one or several heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from lookupjax.errors import UserError
from lookupjax.tasks.base import Task

LOSSES = ("softmax", "sigmoid")


def one_hot(label: Int[Array, "b"] | Float[Array, "b k"], classes: int) -> Float[Array, "b k"]:
    """Class indices as distributions; soft labels (from mixing) pass through."""
    if label.ndim == 2:
        return label
    return jax.nn.one_hot(label, classes)


def is_right(classes: Int[Array, "b n"], target: Float[Array, "b k"]) -> Float[Array, "b n"]:
    """1 for the most probable class of the target, or any of several that are equally probable, else 0."""
    most = target.max(-1, keepdims=True)
    return (jnp.take_along_axis(target, classes, axis=1) == most).astype(jnp.float32)


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy, a mean over the batch and a weighted sum over `heads`.

    Args:
      loss_kind: "softmax" cross-entropy, or "sigmoid": binary cross-entropy summed over classes.
      label_smoothing: share of the target spread evenly over all classes.
      heads: names of the model outputs that are trained; default those the model declares.
      head_weights: of their losses; () takes those the model declares, or else the mean over heads
        (LookupViT: both, equal weights).

    A model output "aux_loss" (a scalar, such as a balance loss) is added as it is.
    """

    loss_kind: str = "softmax"
    label_smoothing: float = 0.0
    heads: tuple[str, ...] = ("logits",)
    head_weights: tuple[float, ...] = ()

    @classmethod
    def for_model(cls, model: nnx.Module, **options: Any) -> "Classification":
        """Trains the outputs that the model declares as `loss_heads`, weighted by its `loss_weights`."""
        declared = {"heads": model.loss_heads, "head_weights": getattr(model, "loss_weights", ())}
        if "heads" in options:  # other heads than the declared weights are for
            del declared["head_weights"]
        return cls(**(declared | options))

    def __post_init__(self):
        if self.loss_kind not in LOSSES:
            raise UserError(f"loss={self.loss_kind!r} is unknown; choose one of {LOSSES}")
        if self.head_weights and len(self.head_weights) != len(self.heads):
            raise UserError(f"head_weights={self.head_weights} must have one entry for each of {self.heads}")

    def per_example(self, logits: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, "b"]:
        logits = logits.astype(jnp.float32)
        if self.label_smoothing:
            target = optax.smooth_labels(target, self.label_smoothing)
        if self.loss_kind == "sigmoid":
            return optax.sigmoid_binary_cross_entropy(logits, target).sum(-1)
        return optax.softmax_cross_entropy(logits, target)

    def loss(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Scalar loss and the figures logged beside it."""
        target = one_hot(batch["label"], outputs["logits"].shape[-1])
        losses = {head: self.per_example(outputs[head], target).mean() for head in self.heads}
        weights = self.head_weights or (1.0 / len(losses),) * len(losses)
        total = sum(w * v for w, v in zip(weights, losses.values())) + outputs.get("aux_loss", 0.0)
        figures = {"accuracy": is_right(outputs["logits"].argmax(-1)[:, None], target).mean()}
        if len(losses) > 1:
            figures |= {f"loss_{head.removeprefix('logits_')}": v for head, v in losses.items()}
        return total, figures

    def evaluate(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, "b"]]:
        """Per-example figures; the evaluator averages them over real (unmasked) examples."""
        target = one_hot(batch["label"], outputs["logits"].shape[-1])
        hit = is_right(jax.lax.top_k(outputs["logits"], min(5, target.shape[-1]))[1], target)
        return {
            "accuracy": hit[:, 0],
            "top5": hit.max(-1),
            "nll": optax.softmax_cross_entropy(outputs["logits"], target),
        }

    def choices(self, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        """Per example "label", "predicted", "confidence" (largest probability), "probability" (of label).

        Of several equally probable labels it is the predicted one, where that is among them.
        """
        target, predicted = one_hot(batch["label"], outputs["logits"].shape[-1]), outputs["logits"].argmax(-1)
        label = jnp.where(is_right(predicted[:, None], target)[:, 0] > 0, predicted, target.argmax(-1))
        p = jax.nn.softmax(outputs["logits"].astype(jnp.float32), axis=-1)
        return {
            "label": label,
            "predicted": predicted,
            "confidence": p.max(-1),
            "probability": jnp.take_along_axis(p, label[:, None], axis=-1)[:, 0],
        }


TASK = Classification
