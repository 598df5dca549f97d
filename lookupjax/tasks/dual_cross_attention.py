"""DCAL's training (arXiv 2205.02151, section 3.3): three branches, their losses weighed by learning."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.models.dcal import DCAL, random_pairs
from lookupjax.tasks.base import Batch, Figures
from lookupjax.tasks.classification import Classification, one_hot
from lookupjax.tasks.metric import batch_hard_triplet

BRANCHES = ("sa", "glca", "pwca")


def balanced(losses: Float[Array, "n"], w: Float[Array, "n"]) -> Float[Array, ""]:
    """1/2 sum of (exp(-w_i) L_i + w_i), w learned (uncertainty weights, as in FairMOT, arXiv 2004.01888)."""
    return 0.5 * (jnp.exp(-w) * losses + w).sum()


@dataclass(frozen=True)
class DualCrossAttention(Classification):
    """Cross-entropy of each branch, every image paired with another of the batch, drawn anew each step.

    Without the model's `learned_balance` the total is half the sum.

    Args:
      margin: of a batch-hard triplet loss on each branch's class token, added to its cross-entropy
        (re-identification: 0.3, with several images of each identity in a batch); 0 for none.
    """

    margin: float = 0.0

    @classmethod
    def for_model(cls, model: nnx.Module, **options: Any) -> "DualCrossAttention":
        """The task for a DCAL.

        Raises:
          UserError: for another model.
        """
        if not isinstance(model, DCAL):
            raise UserError("the task dual_cross_attention trains DCAL; choose a model such as dcal_b16")
        return cls(**({"heads": model.loss_heads} | options))

    def train_loss(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> tuple[Float[Array, ""], Figures]:
        pairs = random_pairs(rngs.pairs(), batch["image"].shape[0])
        outputs = model(batch["image"], pairs=pairs, rngs=rngs, **call)
        target = one_hot(batch["label"], outputs["logits"].shape[-1])
        losses = []
        for branch in BRANCHES:
            loss = self.per_example(outputs[f"logits_{branch}"], target).mean()
            if self.margin:
                loss += batch_hard_triplet(outputs[f"token_{branch}"], target.argmax(-1), self.margin)
            losses.append(loss)
        w = jnp.zeros(len(BRANCHES)) if model.balance is None else model.balance[...]
        correct = outputs["logits"].argmax(-1) == target.argmax(-1)
        figures = {f"loss_{branch}": loss for branch, loss in zip(BRANCHES, losses)}
        return balanced(jnp.stack(losses), w), figures | {"accuracy": correct.astype(jnp.float32).mean()}


TASK = DualCrossAttention
