"""Classes and heads: how a dataset's labels meet a model's logits."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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


def class_figures(
    logits: Float[Array, "n k"], label: Int[Array, "n"], head: str = ""
) -> dict[str, Float[Array, "n"]]:
    """accuracy, top5, nll and confidence (the largest probability) of each example, named after `head`."""
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == label[:, None]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return {
        f"{head}accuracy": best[:, 0].astype(jnp.float32),
        f"{head}top5": best.any(-1).astype(jnp.float32),
        f"{head}nll": -jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0],
        f"{head}confidence": jnp.exp(log_p.max(-1)),
    }


@dataclass(frozen=True)
class ClassLogits:
    """logits(outputs, batch): float32 logits of every head ("compressed/logits"), and the label.

    One logit for each class of the dataset, whose labels they are numbered by. Equal instances share one
    compiled program, here and in the subclasses.

    Args:
      model_classes: how many logits the model must have.
      classes: the model's class of each class of the dataset, or None: they are the same.
    """

    model_classes: int
    classes: Classes | None = None

    def logits(self, outputs: Mapping[str, Array]) -> dict[str, Float[Array, "b k"]]:
        """The logits by the prefix of their head.

        Raises:
          UserError: when the model has another number of logits, or none.
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

    def __call__(self, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        logits = {f"{head}logits": value for head, value in self.logits(outputs).items()}
        return logits | {"label": batch["label"]}


@dataclass(frozen=True)
class Judge(ClassLogits):
    """judge(outputs, batch): the `class_figures` of every head."""

    def __call__(self, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        figures = {}
        for head, logits in self.logits(outputs).items():
            figures |= class_figures(logits, batch["label"], head)
        return figures
