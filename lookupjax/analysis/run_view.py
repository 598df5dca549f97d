"""What a report page knows of a run, and how it draws it."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from lookupjax.analysis.page import Markup
from lookupjax.analysis.plots import COLOURS, INK, LOOK, Bins, inline

COLOURED = ("text.", "axes.label", "xtick.", "ytick.", "axes.edge", "axes.title")
SMALL = LOOK | {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    **{f"{name}color": INK for name in COLOURED},
}


@dataclass(frozen=True)
class Judged:
    """What a run's own evaluation said of every example of a split, under one call.

    words: names of the classes. bins: see `plots.Bins`. pictures: {place in the columns: PNG} of the most
    confident mistakes, worst first. index: of each example in the split.
    """

    call: str
    split: str
    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    probability: np.ndarray
    words: Sequence[str]
    bins: Bins
    pictures: Mapping[int, bytes]

    @property
    def title(self) -> str:
        return " · ".join(filter(None, (self.call, self.split)))

    def word(self, label: int) -> str:
        return self.words[label] if label < len(self.words) else str(label)


@dataclass(frozen=True)
class RunView:
    """Everything the page shows of a run; what it does not know is empty, and `notes` say why.

    results: {call: {figure: number}}, of an unfinished run the newest. history: rows of metrics.jsonl.
    macs: multiply-accumulates of one input by call. seconds: where the time went, by part. config: by dotted
    key.
    chooses: whether the task chooses among classes. drawn: {name: PNG}, the pictures that evaluators drew.
    """

    name: str
    place: str
    model: str
    task: str
    step: int
    steps: int
    finished: bool
    chooses: bool
    results: Mapping[str, Mapping[str, float]]
    history: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    params: int = 0
    macs: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    starts: int = 0
    judged: Sequence[Judged] = ()
    drawn: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()


def labelled(index: int, text: str) -> Markup:
    """A run's name with the colour it has in the charts."""
    colour = f"var(--c{index % len(COLOURS)})"
    return Markup(f'<span class="run" style="--own: {colour}">{html.escape(text)}</span>')


def chart(draw: Callable[..., None], *arguments: Any, rows: tuple[int, ...] = (1,)) -> str:
    """draw(axes, ..., *arguments) as an SVG element in a figure element; `rows`: heights of the panels."""
    with rc_context(SMALL):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots(len(rows), squeeze=False, sharex=True, height_ratios=rows)[:, 0]
        draw(*axes, *arguments)
        lines = axes[0].get_legend_handles_labels()
        if lines[0]:
            figure.legend(*lines, loc="outside lower center", ncols=2)
        return f"<figure>{inline(figure)}</figure>\n"
