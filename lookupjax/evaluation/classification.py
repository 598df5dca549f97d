"""Top-1, top-5, negative log-likelihood and calibration on any dataset with the model's classes.

Of every head and compressed grid. The dataset may have some of the model's classes only, or have them in
another order: they are matched by name, and the others are left out of the choice (ImageNet-A and -R).

    {"type": "classification", "data": {"name": "imagenet_v2"}, "split": "test"}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lookupjax.analysis.plots import reliability_diagrams
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.figures import means
from lookupjax.evaluation.labels import Judge, match_classes
from lookupjax.evaluation.metrics import Reliability, reliability


def judge_for(context: Context, data: Mapping[str, Any] | None) -> Judge:
    """The judge of the dataset that `data` changes to.

    Raises:
      UserError: when its classes are not among those of the training data.
    """
    model, dataset = context.info().class_names, context.info(data).class_names
    name = context.data_config(data).name
    return Judge(len(model), match_classes(model, dataset, name))


class Evaluator:
    """accuracy, top5, nll and ece (expected calibration error), per call and head ("compressed/accuracy").

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`, such as another dataset's name.
      bins: of the calibration error.
      plot: writes a reliability diagram per call.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        data: Mapping[str, Any] | None = None,
        bins: int = 15,
        plot: bool = True,
    ):
        self.context, self.bins, self.plot = context, bins, plot
        self.batches, self.judge = context.batches(split, data), judge_for(context, data)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.judge, params, stats, self.batches, call)
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
