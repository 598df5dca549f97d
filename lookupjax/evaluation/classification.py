"""Accuracy, top-5 accuracy and negative log-likelihood on a split, per variant of the model's call."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lookupjax.data.loader import EvalBatches
from lookupjax.grids import format_grid
from lookupjax.tasks.base import Task
from lookupjax.training.sharding import check_batch_size, global_batch
from lookupjax.training.state import merge_model

Call = tuple[tuple[str, Any], ...]


def call_name(call: Call) -> str:
    """How a call variant is named in results: its grid, or "" for the model's own call."""
    return " ".join(format_grid(grid) for _, grid in call)


class Evaluator:
    """Evaluates parameters on `split`; every example counts once, whatever the batch size or mesh.

    Args:
      task: gives per-example figures, `task.evaluate(outputs, batch)`.
      calls: variants of the model's call (LookupViT: compressed grids); one program each.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        task: Task,
        mesh: Mesh,
        data: ConfigDict,
        *,
        split: str,
        batch_size: int,
        calls: Sequence[Call] = ((),),
    ):
        check_batch_size(batch_size, mesh, "config.eval_batch_size")
        self.calls, self.mesh = tuple(calls), mesh
        self.batches = EvalBatches(
            data,
            split,
            batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.sums: Callable = jax.jit(self._sums, static_argnums=3)
        self.graphdef, self.task = graphdef, task

    def _sums(self, params: Any, stats: Any, batch: dict, call: Call) -> dict[str, jax.Array]:
        outputs = self.task.predict(merge_model(self.graphdef, params, stats), batch, **dict(call))
        mask = batch["mask"]
        figures = self.task.evaluate(outputs, batch) | {"examples": jnp.ones_like(mask)}
        return {name: (value * mask).sum() for name, value in figures.items()}

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        """{call name: {figure: mean over examples}}, with the number of "examples" counted."""
        totals: dict[str, dict[str, float]] = {}
        for call in self.calls:
            pending = [
                self.sums(params, stats, global_batch(batch, self.mesh), call) for batch in self.batches
            ]
            rows = jax.device_get(pending)
            total = {name: float(sum(row[name] for row in rows)) for name in rows[0]}
            examples = total.pop("examples")
            means = {name: value / examples for name, value in total.items()}
            totals[call_name(call)] = means | {"examples": int(examples)}
        return totals


def flatten_results(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """{"eval/3x3/accuracy": ...} for the metric writers."""
    return {
        "/".join(part for part in ("eval", grid, figure) if part): value
        for grid, figures in results.items()
        for figure, value in figures.items()
        if figure != "examples"
    }
