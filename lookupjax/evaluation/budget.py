"""Accuracy against MACs of a model with early exits, and what a budget buys (arXiv 2306.11248, section 4.3).

The thresholds of each of the 33 rows of the schedule, and the row that a budget allows, are chosen on one
part of the data and judged on another; see `lookupjax.analysis.early_exit`.

    {"type": "budget", "budgets": (0.5, 0.7), "measure": 64}
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.analysis.batched_exit import BatchedExits
from lookupjax.analysis.counts import count_products
from lookupjax.analysis.early_exit import (
    ALWAYS,
    NEVER,
    accuracy_and_cost,
    exit_shares,
    find_thresholds,
    within_budget,
)
from lookupjax.analysis.plots import Point, accuracy_against_macs
from lookupjax.errors import UserError
from lookupjax.evaluation.context import Context
from lookupjax.training.state import merge_model

MEASURED = 8  # batches that a measurement runs


@dataclass(frozen=True)
class Exits:
    """Confidence and correctness of every exit, (b, e) each."""

    heads: tuple[str, ...]

    def __call__(self, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        probabilities = jax.nn.softmax(jnp.stack([outputs[head] for head in self.heads], axis=1))
        hits = probabilities.argmax(-1) == batch["label"][:, None]
        return {"confidence": probabilities.max(-1), "hits": hits}


class Row(NamedTuple):
    """Thresholds; (accuracy, MACs) on the part of the data that chose them and on the other."""

    limits: Float[np.ndarray, "e"]
    chosen: tuple[float, float]
    judged: tuple[float, float]


def exit_costs(model: nnx.Module, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Multiply-accumulates of one image of `shape` (h, w, c) until each exit."""
    graphdef, state = nnx.split(model)

    def until(exit: int) -> float:
        def run(state: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
            carry: tuple[Array, ...] = (images,)
            for i in range(exit + 1):
                logits, carry = nnx.merge(graphdef, state, copy=True).run_segment(i, carry)
            return logits

        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return float(count_products(jax.jit(run).trace(state, image)))

    return tuple(until(exit) for exit in range(len(model.loss_heads)))


class Evaluator:
    """{accuracy, gmacs} within each budget and of the whole model, and the curve as a table and a picture.

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`, such as another dataset's name.
      validation: the split that chooses thresholds; "": every second example of `split`, which then is not
        judged. The training split makes a model look more confident than it is.
      budgets: shares of the whole model's MACs.
      measure: batch size at which images/s are measured, for each budget and the whole model; 0: not.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        data: Mapping[str, Any] | None = None,
        validation: str = "",
        budgets: Sequence[float] = (0.5, 0.7, 0.9),
        measure: int = 0,
    ):
        self.context, self.budgets, self.measure = context, budgets, measure
        self.batches = context.batches(split, data)
        self.validation = context.batches(validation, data) if validation else None

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        """{"": {"budget_50/accuracy": ..., "whole/gmacs": ...}}.

        Raises:
          UserError: when the model has no exits.
        """
        model = merge_model(self.context.graphdef, params, stats)
        if not hasattr(model, "run_segment"):
            raise UserError("budgets need a model with early exits, such as dynperceiver")
        chosen, judged = self.columns(model, params, stats)
        shape = self.batches.batch(0)["image"].shape[1:]
        costs = exit_costs(model, shape)

        def row(limits: Float[np.ndarray, "e"]) -> Row:
            on = [accuracy_and_cost(part[0], part[1], limits, costs) for part in (chosen, judged)]
            return Row(limits, *on)

        rows = [row(find_thresholds(chosen[0], share)) for share in exit_shares(len(costs))]
        picks = {"whole": row(np.float32([NEVER] * (len(costs) - 1) + [ALWAYS]))}
        for budget in self.budgets:
            best = within_budget(
                [row.chosen[1] for row in rows], [row.chosen[0] for row in rows], budget * costs[-1]
            )
            picks[f"budget_{round(100 * budget)}"] = rows[best]
        figures: dict[str, float] = {}
        for name, pick in picks.items():
            figures |= {f"{name}/accuracy": pick.judged[0], f"{name}/gmacs": pick.judged[1] / 1e9}
        if self.measure:
            for name, pick in picks.items():
                limits = None if name == "whole" else pick.limits
                figures[f"{name}/images_per_s"] = self.images_per_second(model, limits)
        directory = self.context.drawing_directory()
        if directory:
            singles = [(float(hits.mean()), cost) for hits, cost in zip(judged[1], costs)]
            write_curve(rows, singles, model.loss_heads, directory)
        return {"": figures | {"examples": judged[0].shape[1]}}

    def columns(self, model: nnx.Module, params: Any, stats: Any) -> tuple[tuple, tuple]:
        """(confidence, hits), (e, n) each, of the examples that choose and of those that are judged."""
        exits = Exits(model.loss_heads)

        def collected(batches: Any) -> list[np.ndarray]:
            found = self.context.collect(exits, params, stats, batches)
            return [found[name].T for name in ("confidence", "hits")]

        both = collected(self.batches)
        if self.validation is None:
            return tuple(a[:, ::2] for a in both), tuple(a[:, 1::2] for a in both)
        return tuple(collected(self.validation)), tuple(both)

    def images_per_second(self, model: nnx.Module, limits: Float[np.ndarray, "e"] | None) -> float:
        """Of the evaluation images in batches of `measure`, on one device; None: the whole model at once."""
        graphdef, state = nnx.split(model)
        wanted, images = MEASURED * self.measure, []
        for batch in self.batches:
            images.append(np.asarray(batch["image"])[np.asarray(batch["mask"]) > 0])
            if sum(map(len, images)) >= wanted:
                break
        data = np.concatenate(images)[:wanted]
        if len(data) < self.measure:
            raise UserError(f"measure={self.measure} is more than the {len(data)} evaluation images")
        data = data[: len(data) // self.measure * self.measure]
        if limits is None:
            forward = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x)["logits"].argmax(-1))

            def pass_over() -> None:
                for start in range(0, len(data), self.measure):
                    jax.device_get(forward(state, data[start : start + self.measure]))
        else:
            runner = BatchedExits(model, limits, self.measure)

            def pass_over() -> None:
                runner(data)

        pass_over()  # compiles
        began = time.perf_counter()
        pass_over()
        return len(data) / (time.perf_counter() - began)


def write_curve(
    rows: Sequence[Row], singles: Sequence[tuple[float, float]], heads: Sequence[str], directory: Path
) -> None:
    """curve.md, the table of all rows, and curve.png, their judged accuracy against MACs."""
    lines = [
        "| row | " + " | ".join(f"T {head}" for head in heads[:-1]) + " | chosen on: accuracy | MMACs | "
        "judged: accuracy | MMACs |",
        "|---" * (len(heads) + 4) + "|",
    ]
    for i, row in enumerate(rows):
        limits = ["never" if limit > 1 else f"{limit:.4f}" for limit in row.limits[:-1]]
        values = [f"{v:.4f}" if k == 0 else f"{v / 1e6:,.3f}" for pair in row[1:] for k, v in enumerate(pair)]
        lines.append("| " + " | ".join([str(i), *limits, *values]) + " |")
    (directory / "curve.md").write_text("\n".join(lines) + "\n")
    single = [
        Point(head.removeprefix("logits_").replace("logits", "last"), cost, accuracy)
        for head, (accuracy, cost) in zip(heads, singles)
    ]
    curve = [Point("", row.judged[1], row.judged[0]) for row in rows]
    accuracy_against_macs({"early exit": curve, "one exit for all": single}, directory / "curve.png")
