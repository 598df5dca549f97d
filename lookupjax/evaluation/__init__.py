"""Evaluators: figures of a trained model on a dataset, counted per example. One file per type.

A file `evaluation/<type>.py` with a class `Evaluator(context, *, ...options)` and a method
`run(params, stats) -> {call name: {figure: number}}` is a type. `config.evaluators` names the evaluators of
a run, {"v2": {"type": "classification", "data": {"name": "imagenet_v2"}}}; their figures appear as
`v2/accuracy` beside those of the task, which are always there under their bare names.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from lookupjax.errors import UserError, nearest
from lookupjax.evaluation.context import Context

Results = dict[str, dict[str, float]]  # {call name: {figure: number}}

SUPPORT = {
    "caption_scores",
    "context",
    "labels",
    "metrics",
    "predictions",
    "ptb",
    "ranking",
}  # modules that are no evaluator types
TASK_FIGURES = {"": {"type": "figures"}}  # what runs without any config.evaluators
OWN = "figures"  # how a person and a directory call that


@runtime_checkable
class Evaluator(Protocol):
    """What a type offers."""

    def run(self, params: Any, stats: Any) -> Results: ...


def list_evaluators() -> list[str]:
    """Names that the "type" of an evaluator accepts."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SUPPORT)


def create_evaluator(name: str, spec: Mapping[str, Any], context: Context) -> Evaluator:
    """The evaluator {"type": ..., ...its options}.

    Raises:
      UserError: for an unknown type or option, with the nearest known one, or a missing dataset.
    """
    options, place, types = dict(spec), f"config.evaluators.{name}", list_evaluators()
    kind = options.pop("type", "")
    if kind not in types:
        raise UserError(
            f"{place}: there is no evaluator type {kind!r}{nearest(kind, types)}; there are {types}"
        )
    make = importlib.import_module(f"{__name__}.{kind}").Evaluator
    parameters = dict(inspect.signature(make).parameters)
    parameters.pop("context")
    for option in options:
        if option not in parameters:
            raise UserError(
                f"{place}: {kind} has no option {option!r}{nearest(option, parameters)}; "
                f"it has {list(parameters)}"
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise UserError(f"{place}: {kind} needs the option {option!r}")
    with _named(name):
        return make(context.named(name or OWN), **options)


def create_evaluators(
    specs: Mapping[str, Mapping[str, Any]], context: Context, names: Sequence[str] = ()
) -> dict[str, Evaluator]:
    """The task's own figures (under the name "") and the evaluators of `config.evaluators`.

    Args:
      names: only these; the task's own figures are called "figures" here.

    Raises:
      UserError: for a name that there is not, and what `create_evaluator` raises.
    """
    known = [OWN, *specs]
    for name in names:
        if name not in known:
            raise UserError(f"there is no evaluator {name!r}{nearest(name, known)}; there are {known}")
    chosen = {n: spec for n, spec in {**TASK_FIGURES, **specs}.items() if not names or (n or OWN) in names}
    return {name: create_evaluator(name, spec, context) for name, spec in chosen.items()}


def run_evaluators(evaluators: Mapping[str, Evaluator], params: Any, stats: Any) -> Results:
    """Every evaluator's figures, {call name: {"name/figure": number}}.

    Raises:
      UserError: what an evaluator raised, with its name.
    """
    merged: Results = {}
    for name, evaluator in evaluators.items():
        with _named(name):
            results = evaluator.run(params, stats)
        for call, figures in results.items():
            merged.setdefault(call, {}).update(
                {f"{name}/{figure}" if name else figure: value for figure, value in figures.items()}
            )
    return merged


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says in an error which evaluator it came from."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(f"evaluator {name!r}: {error}") from error
    except Exception as error:
        error.add_note(f"in evaluator {name!r}")
        raise


def describe(results: Results) -> list[str]:
    """One line of text per call and evaluator: "3x3 v2: accuracy 0.7251  10000 examples"."""
    lines: dict[str, list[str]] = {}
    for call, figures in results.items():
        for figure, value in figures.items():
            evaluator, _, name = figure.rpartition("/")
            shown = f"{name} {value:.4f}" if isinstance(value, float) else f"{value} {name}"
            lines.setdefault(" ".join(filter(None, (call, evaluator))) or "model", []).append(shown)
    return [f"{place}: {'  '.join(shown)}" for place, shown in lines.items()]


def flatten_results(results: Results) -> dict[str, float]:
    """{"eval/3x3/accuracy": ...} for the metric writers."""
    return {
        "/".join(part for part in ("eval", call, figure) if part): value
        for call, figures in results.items()
        for figure, value in figures.items()
        if figure.rpartition("/")[2] != "examples"
    }
