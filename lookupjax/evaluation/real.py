"""ReaL accuracy: against all the labels that human raters accept for an image (arXiv 2006.07159).

{"type": "real"}    on the dataset imagenet2012_real, split "validation"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.evaluation.classification import class_space
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.figures import means
from lookupjax.evaluation.labels import ClassLogits

MOST = 64  # labels per image


@dataclass(frozen=True)
class PadLabels:
    """A transform that makes the variable number of labels under `key` a fixed one, filled up with -1."""

    key: str = "real_label"
    whole = True

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        if self.key not in example:
            raise UserError(
                f"examples have no {self.key!r}; ReaL accuracy needs the dataset imagenet2012_real"
            )
        labels = np.asarray(example[self.key], np.int32).reshape(-1)
        if len(labels) > MOST:
            raise UserError(f"an image has {len(labels)} labels under {self.key!r}, more than {MOST}")
        return example | {self.key: np.pad(labels, (0, MOST - len(labels)), constant_values=-1)}


@dataclass(frozen=True)
class AnyOf(ClassLogits):
    """Whether each head's first choice is one of the labels under `key`, and whether there are any."""

    key: str = "real_label"

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, "b"]]:
        labels = batch[self.key]
        hits = {
            f"{head}accuracy": (logits.argmax(-1)[:, None] == labels).any(-1).astype(jnp.float32)
            for head, logits in self.logits(outputs).items()
        }
        return hits | {"labelled": (labels >= 0).any(-1).astype(jnp.float32)}


class Evaluator:
    """accuracy per call and head, over the images that have labels; the others are left out.

    Args:
      split, data: where the reassessed labels lie.
      key: their name in an example.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "validation",
        data: Mapping[str, Any] | None = None,
        key: str = "real_label",
    ):
        changes = {"name": "imagenet2012_real", "batch_keys": (key,)} | dict(data or {})
        transforms = tuple(context.data_config(changes).eval_transforms)
        changes["eval_transforms"] = (*transforms, {"name": f"{__name__}:PadLabels", "key": key})
        self.context, self.batches = context, context.batches(split, changes)
        self.judge = AnyOf(*class_space(context, changes), key)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.judge, params, stats, self.batches, call)
            labelled = columns.pop("labelled") > 0
            results[call_name(call)] = means({name: hit[labelled] for name, hit in columns.items()})
        return results
