"""The task's own figures: what `task.evaluate` says of each example, averaged over a split."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lookupjax.evaluation.context import Context, call_name


def means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each column and the number of "examples"."""
    figures = {name: float(values.mean(dtype=np.float64)) for name, values in columns.items()}
    return figures | {"examples": len(next(iter(columns.values())))}


class Evaluator:
    """Means over the split, every example counted once, whatever the batch size or mesh.

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`, such as another dataset's name.
    """

    def __init__(self, context: Context, *, split: str = "", data: Mapping[str, Any] | None = None):
        self.context, self.batches = context, context.batches(split, data)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        """{call name: {figure: mean}}, with the number of "examples" counted."""
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.context.task.evaluate, params, stats, self.batches, call)
            results[call_name(call)] = means(columns)
        return results
