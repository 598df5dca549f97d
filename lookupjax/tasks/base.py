"""The common shape of every task."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

Batch = Mapping[str, Array]
Outputs = Mapping[str, Array]
Figures = dict[str, Float[Array, ""]]


class Task:
    """Base of the tasks, which are frozen dataclasses: their fields are the options of `config.task`.

    A task defines `loss` and `evaluate`; one that needs more than the model's outputs for its training
    loss (attacked images, a second call, other inputs) overrides `train_loss` and `predict`.
    """

    @classmethod
    def for_model(cls, model: nnx.Module, **options: Any) -> "Task":
        """The task with `options`; what follows from the model (such as its heads) is filled in."""
        return cls(**options)

    def train_loss(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> tuple[Float[Array, ""], Figures]:
        """The scalar that is minimised and the figures logged beside it. Called inside grad and jit."""
        return self.loss(model(batch["image"], rngs=rngs, **call), batch)

    def predict(self, model: nnx.Module, batch: Batch, **call: Any) -> Outputs:
        """The model's outputs in evaluation."""
        return model(batch["image"], **call)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Float[Array, ""], Figures]:
        """Scalar loss of the outputs, and figures."""
        raise NotImplementedError

    def evaluate(self, outputs: Outputs, batch: Batch) -> dict[str, Float[Array, "b"]]:
        """Per-example figures; the evaluator averages them over real (unmasked) examples."""
        raise NotImplementedError
