"""Training all exits of a network, each also from the last one's predictions (arXiv 2306.11248)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.tasks.classification import Classification, one_hot


def distillation_loss(
    logits: Float[Array, "b k"], teacher: Float[Array, "b k"], temperature: float
) -> Float[Array, ""]:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch; the teacher is constant."""
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


@dataclass(frozen=True)
class EarlyExit(Classification):
    """sum_i weights_i CE(exit i) + distillation sum_(i < last) T^2 KL(last || exit i).

    Args:
      heads: the exits in the order of computation, the teacher last.
      weights: of each exit's cross-entropy.
      distillation, temperature: weight and T of the distillation from the last exit.
    """

    weights: tuple[float, ...] = (0.5, 0.5, 1.0, 1.0)
    distillation: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if len(self.weights) != len(self.heads):
            raise UserError(f"weights={self.weights} need one entry for each exit {self.heads}")

    def loss(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Scalar loss and the figures logged beside it."""
        target = one_hot(batch["label"], outputs["logits"].shape[-1])
        exits = [outputs[head].astype(jnp.float32) for head in self.heads]
        entropies = jnp.stack([self.per_example(logits, target).mean() for logits in exits])
        task_loss = jnp.vdot(jnp.asarray(self.weights, jnp.float32), entropies)
        teacher = exits[-1]
        distilled = sum((distillation_loss(e, teacher, self.temperature) for e in exits[:-1]), jnp.zeros(()))
        correct = teacher.argmax(-1) == target.argmax(-1)
        figures = {
            "accuracy": correct.astype(jnp.float32).mean(),
            "task_loss": task_loss,
            "distillation": distilled,
        }
        return task_loss + self.distillation * distilled + outputs.get("aux_loss", 0.0), figures

    def evaluate(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, "b"]]:
        """Those of the last exit, and the accuracy of every earlier one."""
        target = one_hot(batch["label"], outputs["logits"].shape[-1]).argmax(-1)
        early = {
            f"accuracy_{head.removeprefix('logits_')}": (outputs[head].argmax(-1) == target).astype(
                jnp.float32
            )
            for head in self.heads[:-1]
        }
        return super().evaluate(outputs, batch) | early


TASK = EarlyExit
