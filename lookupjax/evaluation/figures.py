"""The task's own figures: what `task.evaluate` says of each example, averaged over a split."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.predictions import CHOICES, FiguresAndChoices, path_of, write_predictions


def means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each column and the number of "examples"."""
    figures = {name: float(values.mean(dtype=np.float64)) for name, values in columns.items()}
    return figures | {"examples": len(next(iter(columns.values())))}


class Evaluator:
    """Means over the split, every example counted once, whatever the batch size or mesh.

    A task that chooses among classes also leaves its choices in the evaluator's directory, see `predictions`.

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`, such as another dataset's name.
    """

    def __init__(self, context: Context, *, split: str = "", data: Mapping[str, Any] | None = None):
        self.context, self.batches = context, context.batches(split, data)
        task, config, info = context.task, context.data_config(data), context.info(data)
        self.judge = FiguresAndChoices(task) if hasattr(task, "choices") else task.evaluate
        self.about = {
            "dataset": config.name,
            "split": split or config.eval_split,
            "words": info.words or info.class_names,
        }

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        """{call name: {figure: mean}}, with the number of "examples" counted."""
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.judge, params, stats, self.batches, call, index=True)
            index, name = columns.pop("index"), call_name(call)
            chosen = {n: columns.pop(f"choice/{n}") for n in CHOICES if f"choice/{n}" in columns}
            results[name] = means(columns)
            directory = self.context.drawing_directory() if chosen else None
            if directory:
                path = path_of(directory, self.about["dataset"], self.about["split"], name)
                write_predictions(path, chosen | {"index": index}, self.batches, self.about)
        return results
