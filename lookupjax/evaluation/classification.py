"""Top-1, top-5, negative log-likelihood and calibration on any dataset with the model's classes.

Of every head and compressed grid. The dataset may have some of the model's classes only, or have them in
another order: they are matched by name, and the others are left out of the choice.

    {"type": "classification", "data": {"name": "imagenet_v2"}, "split": "test"}
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lookupjax.analysis.plots import reliability_diagrams
from lookupjax.errors import UserError
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.figures import means
from lookupjax.evaluation.labels import Classes, ClassLogits, Judge, class_figures, match_classes
from lookupjax.evaluation.metrics import Reliability, reliability

AMONG = ("all", "present")


def class_space(context: Context, data: Mapping[str, Any] | None) -> tuple[int, Classes | None]:
    """(the model's number of classes, its class of each class of the dataset that `data` changes to).

    Raises:
      UserError: when the dataset's classes are not among those of the training data.
    """
    model, dataset = context.info().class_names, context.info(data).class_names
    return len(model), match_classes(model, dataset, context.data_config(data).name)


def judge_for(context: Context, data: Mapping[str, Any] | None) -> Judge:
    """The judge of the dataset that `data` changes to; see `class_space`."""
    return Judge(*class_space(context, data))


def among_present(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The `class_figures` among the classes that occur in "label", of columns of `ClassLogits`."""
    present, label = np.unique(columns["label"], return_inverse=True)
    figures = {}
    for name, logits in columns.items():
        if name != "label":
            chosen = jnp.asarray(logits[:, present]), jnp.asarray(label, jnp.int32)
            figures |= jax.device_get(class_figures(*chosen, head=name.removesuffix("logits")))
    return figures


class Evaluator:
    """accuracy, top5, nll and ece (expected calibration error), per call and head ("compressed/accuracy").

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`, such as another dataset's name.
      among: what the model chooses among: "all" classes of the dataset, or those "present" in the split
        (TFDS's copies of ImageNet-A and -R have 1000 class names and contain 200).
      bins: of the calibration error.
      plot: writes a reliability diagram per call.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        data: Mapping[str, Any] | None = None,
        among: str = "all",
        bins: int = 15,
        plot: bool = True,
    ):
        if among not in AMONG:
            raise UserError(f"among={among!r} is unknown; choose one of {AMONG}")
        self.context, self.bins, self.plot, self.among = context, bins, plot, among
        self.batches = context.batches(split, data)
        judge = judge_for(context, data)
        self.judge = judge if among == "all" else ClassLogits(judge.model_classes, judge.classes)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.judge, params, stats, self.batches, call)
            if self.among == "present":
                columns = among_present(columns)
            binned = self.binned(columns)
            shown = {name: v for name, v in columns.items() if not name.endswith("confidence")}
            calibration = {f"{head}ece": table.error for head, table in binned.items()}
            results[call_name(call)] = means(shown) | calibration
            directory = self.context.drawing_directory() if self.plot else None
            if directory:
                name = f"reliability_{call_name(call) or 'model'}.png"
                titles = {head.rstrip("/") or "all heads": table for head, table in binned.items()}
                reliability_diagrams(titles, directory / name)
        return results

    def binned(self, columns: Mapping[str, np.ndarray]) -> dict[str, Reliability]:
        """Reliability by the prefix of the head."""
        ends = [name.removesuffix("confidence") for name in columns if name.endswith("confidence")]
        return {
            head: reliability(columns[f"{head}confidence"], columns[f"{head}accuracy"], self.bins)
            for head in ends
        }
