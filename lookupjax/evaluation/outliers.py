"""ImageNet-O (arXiv 1907.07174): does low confidence give away images of unknown classes?

{"type": "outliers"}    imagenet_o against the validation images of the same 200 classes
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lookupjax.errors import UserError
from lookupjax.evaluation.classification import class_space
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.labels import Judge
from lookupjax.evaluation.metrics import average_precision


class Evaluator:
    """aupr per call and head: outliers are the positives, their score is -max softmax probability.

    As the authors do, the softmax is over the classes of the outlier set's folders (200 of the 1000), and
    the known images are those of these classes.

    Args:
      split, data: the outliers.
      known_split, known_data: the images of known classes; default: `config.data.eval_split`.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "test",
        data: Mapping[str, Any] | None = None,
        known_split: str = "",
        known_data: Mapping[str, Any] | None = None,
    ):
        data = {"name": "imagenet_o"} | dict(data or {})
        self.context = context
        self.outliers, self.known = context.batches(split, data), context.batches(known_split, known_data)
        count, classes = class_space(context, data)
        if class_space(context, known_data)[1] is not None:
            raise UserError("the known images of `outliers` need the label space of the training data")
        self.judge, self.classes = Judge(count, classes), classes
        self.everything = Known(count, classes)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            inside = self.context.collect(self.everything, params, stats, self.known, call)
            outside = self.context.collect(self.judge, params, stats, self.outliers, call)
            keep = inside["known"] > 0
            figures: dict[str, float] = {}
            for name in [n for n in outside if n.endswith("confidence")]:
                score = -np.concatenate([outside[name], inside[name][keep]])
                positive = np.arange(len(score)) < len(outside[name])
                figures[f"{name.removesuffix('confidence')}aupr"] = average_precision(score, positive)
            results[call_name(call)] = figures | {"examples": len(positive)}
        return results


class Known(Judge):
    """The confidence of every head, and whether the label is one of the classes."""

    def __call__(self, outputs, batch):
        figures = {
            f"{head}confidence": jax.nn.softmax(logits, axis=-1).max(-1)
            for head, logits in self.logits(outputs).items()
        }
        inside = jnp.isin(batch["label"], jnp.asarray(self.classes))
        return figures | {"known": inside.astype(jnp.float32)}
