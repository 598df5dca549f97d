"""Classes and heads: how a dataset's labels meet a model's logits."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lookupjax.errors import UserError

Classes = tuple[int, ...]


def heads(outputs: Mapping[str, Array]) -> dict[str, Float[Array, "b k"]]:
    """The classifiers among a model's outputs, by the prefix that their figures get.

    {"": logits}, and of a LookupViT also {"compressed/": ..., "lookup/": ...}: the outputs "logits_*".
    """
    return {
        f"{name.removeprefix('logits').removeprefix('_')}/".lstrip("/"): value
        for name, value in outputs.items()
        if name == "logits" or name.startswith("logits_")
    }


def match_classes(model: tuple[str, ...], dataset: tuple[str, ...], what: str) -> Classes | None:
    """The model's class of each class of a dataset, by name; None when they are the same classes.

    Datasets with some of the model's classes (ImageNet-A and -R: 200 of the 1000 WordNet ids) are judged
    among these alone, as their authors do.

    Args:
      what: the dataset's name, for the message.

    Raises:
      UserError: when the dataset has a class that the model was not trained on.
    """
    if model == dataset:
        return None
    numbers = all(name.isdigit() for name in (*model, *dataset))  # no names at all
    known = {} if numbers else {name: index for index, name in enumerate(model)}
    strange = [name for name in dataset if name not in known]
    if strange:
        raise UserError(
            f"{what} has another label space than the model's training data: {len(strange)} of its "
            f"{len(dataset)} classes, such as {strange[0]!r}, are not among the model's {len(model)}; "
            "evaluate on a dataset with the same class names"
        )
    return tuple(known[name] for name in dataset)


@dataclass(frozen=True)
class Judge:
    """judge(outputs, batch): per-example figures of every head, among some classes.

    Equal judges share one compiled program.

    Args:
      model_classes: how many logits the model must have.
      classes: the model's class of each label of the dataset, or None: the labels are the model's classes.
    """

    model_classes: int
    classes: Classes | None = None

    def logits(self, outputs: Mapping[str, Array]) -> dict[str, Float[Array, "b k"]]:
        """Float32 logits of each head, one for each label of the dataset.

        Raises:
          UserError: when the model has another number of logits.
        """
        chosen = {}
        for head, logits in heads(outputs).items():
            if logits.shape[-1] != self.model_classes:
                raise UserError(
                    f"the model has {logits.shape[-1]} logits, but its training data has "
                    f"{self.model_classes} classes, so that names cannot be matched; train it with as many"
                )
            if self.classes is not None:
                logits = logits[:, jnp.asarray(self.classes)]
            chosen[head] = logits.astype(jnp.float32)
        if not chosen:
            raise UserError(f"the model has no class logits, only {sorted(outputs)}")
        return chosen

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, "b"]]:
        """accuracy, top5, nll and confidence (the largest probability)."""
        figures = {}
        for head, logits in self.logits(outputs).items():
            label = batch["label"][:, None]
            best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
            log_p = jax.nn.log_softmax(logits, axis=-1)
            figures |= {
                f"{head}accuracy": (best[:, :1] == label).any(-1).astype(jnp.float32),
                f"{head}top5": (best == label).any(-1).astype(jnp.float32),
                f"{head}nll": -jnp.take_along_axis(log_p, label, axis=-1)[:, 0],
                f"{head}confidence": jnp.exp(log_p.max(-1)),
            }
        return figures
