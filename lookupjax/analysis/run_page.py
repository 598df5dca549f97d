"""One HTML page on one or several runs: figures, curves, mistakes, settings, time. Needs no network.

`write_run_page` puts the sections in order; each takes all runs and says in a sentence what it has not got.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lookupjax.analysis.counts import short
from lookupjax.analysis.judged_sections import calibration_section, confusion_section, mistakes_section
from lookupjax.analysis.page import Markup, folded, page, sentence, table
from lookupjax.analysis.pictures import data_uri
from lookupjax.analysis.plots import (
    Point,
    accuracy_point,
    draw_accuracy_against_macs,
    draw_evaluations,
    draw_losses,
)
from lookupjax.analysis.run_view import RunView, chart, labelled
from lookupjax.files import write_whole

MAIN = ("accuracy", "psnr", "map", "nll")  # what curves show: the first of these that a run has
NAMED = 5  # runs in the heading
STYLE = (Path(__file__).parent / "run_page.css").read_text()
PARTS = {  # of the time, in the order of the bar: what a reader calls them and their colour
    "start-up": ("start-up", "var(--c5)"),
    "compilation": ("compilation", "var(--c4)"),
    "data": ("waiting for data", "var(--c1)"),
    "step": ("training steps", "var(--c0)"),
    "evaluation": ("evaluation", "var(--c2)"),
    "checkpoint": ("checkpoints", "var(--c3)"),
    "other": ("other", "var(--faint)"),
    "lost": ("not running, or steps repeated", "var(--line)"),
}


def write_run_page(runs: Sequence[RunView], path: Path) -> None:
    """Writes the page; runs keep their order and colours in all sections."""
    sections = {title: body for title, make in SECTIONS.items() if (body := make(runs))}
    names = {title: title.lower().replace(" ", "-") for title in sections}
    heading = ", ".join(run.name for run in runs[:NAMED])
    heading += f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    links = "".join(f'<a href="#{names[title]}">{title}</a>' for title in sections)
    top = f"<h1>{html.escape(heading)}</h1>\n{sentence(', '.join(run.place for run in runs))}"
    body = "".join(
        f'<section id="{names[title]}"><h2>{title}</h2>\n{text}</section>\n'
        for title, text in sections.items()
    )
    write_whole(path, page(heading, f"{top}<nav>{links}</nav>\n{body}", STYLE))


def number(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def figures_section(runs: Sequence[RunView]) -> str:
    """The task's own figures, a row per run and call; those of further evaluators, a row each."""
    evaluated = [(index, run, call) for index, run in enumerate(runs) for call in run.results]
    names = dict.fromkeys(figure for _, run, call in evaluated for figure in run.results[call])
    own, others = ([name for name in names if ("/" in name) == far] for far in (False, True))
    with_grids = any(call for _, _, call in evaluated)
    rows = []
    for index, run in enumerate(runs):
        step = f"{run.step:,}" if run.finished else f"{run.step:,} of {run.steps:,}, unfinished"
        for call in run.results or ("",):
            found = run.results.get(call, {})
            row = [labelled(index, run.name), run.model, *[call or "-"] * with_grids]
            row += [f"{run.params:,}", short(run.macs[call]) if call in run.macs else "-", step]
            rows.append([*row, *(number(found.get(name, "-")) for name in own)])
    headings = ["run", "model", *["grid"] * with_grids, "parameters", "MACs", "steps", *own]
    text = table(headings, rows)
    if others:
        columns = [labelled(index, f"{run.name} {call}".strip()) for index, run, call in evaluated]
        rows = [
            [name, *(number(run.results[call].get(name, "-")) for _, run, call in evaluated)]
            for name in others
        ]
        further = table(["evaluator / figure", *columns], rows)
        text += folded(f"Further evaluators: {len(others)} figures", further, len(others) <= 24)
    return text + "".join(sentence(f"{run.name}: {note}") for run in runs for note in run.notes)


def curves_section(runs: Sequence[RunView]) -> str:
    """Training loss, and the main figure of evaluation."""
    histories = {run.name: list(run.history) for run in runs}
    if not any("train/loss" in row for rows in histories.values() for row in rows):
        return sentence("Nothing has been logged yet.")
    known = [{figure for found in run.results.values() for figure in found} for run in runs]
    main = dict.fromkeys(next((name for name in MAIN if name in figures), "") for figures in known)
    charts = chart(draw_losses, histories)
    charts += "".join(chart(draw_evaluations, histories, name) for name in main if name)
    return f'<div class="charts">{charts}</div>'


def tradeoff_section(runs: Sequence[RunView]) -> str:
    """Accuracy against multiply-accumulates."""
    series: dict[str, list[Point]] = {run.name: [] for run in runs}
    for run in runs:
        for call, found in run.results.items():
            if "accuracy" in found and call in run.macs:
                series[run.name].append(accuracy_point(call or run.name, run.macs[call], found))
    points = [(index, point) for index, run in enumerate(runs) for point in series[run.name]]
    if not points:
        return sentence("Left out: it needs an accuracy, and a model whose multiply-accumulates are counted.")
    largest = max(point.macs for _, point in points)
    rows = [
        [
            labelled(index, runs[index].name),
            point.label,
            short(point.macs),
            f"{point.macs / largest:.0%}",
            f"{point.accuracy:.2%} ± {point.error:.2%}",
        ]
        for index, point in points
    ]
    listed = table(["run", "at", "MACs", "relative", "accuracy"], rows)
    note = (
        "MACs: multiply-accumulates of the matrix products and convolutions for one input, counted in the "
        "program. Accuracy with one standard error."
    )
    drawing = chart(draw_accuracy_against_macs, series)
    return f'<div class="charts">{drawing}<div>{listed}{sentence(note)}</div></div>'


def drawn_section(runs: Sequence[RunView]) -> str:
    """What evaluators drew: captions, enlargements, curves."""
    text = ""
    for index, run in enumerate(runs):
        text += f"<h3>{labelled(index, run.name)}</h3>\n" if len(runs) > 1 and run.drawn else ""
        for name, data in run.drawn.items():
            image = f'<img src="{data_uri(data)}" alt="{html.escape(name)}">'
            text += folded(name, f'<figure class="drawn">{image}</figure>', True)
    return text


def settings_section(runs: Sequence[RunView]) -> str:
    """The keys that differ; whole configs folded."""
    text = ""
    if len(runs) > 1:
        keys = sorted(set().union(*(run.config for run in runs)))
        keys = [key for key in keys if not key.startswith("baselines.")]  # settings of further runs
        found = {key: [shown(run.config.get(key, "(not set)")) for run in runs] for key in keys}
        differing = [[key, *values] for key, values in found.items() if len(set(values)) > 1]
        headings = ["key", *(labelled(index, run.name) for index, run in enumerate(runs))]
        text += table(headings, differing, "words") if differing else ""
        text += sentence(f"{len(found) - len(differing)} keys have the same value in all runs.")
    for run in runs:
        lines = "\n".join(f"{key} = {shown(value)}" for key, value in sorted(run.config.items()))
        text += folded(f"The whole config of {run.name}", f"<pre>{html.escape(lines)}</pre>\n")
    return text


def shown(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def time_section(runs: Sequence[RunView]) -> str:
    """A bar and the seconds of each run."""
    timed = [(index, run) for index, run in enumerate(runs) if run.seconds]
    if not timed:
        return sentence("No run has stored where its time went.")
    parts = [part for part in PARTS if any(run.seconds.get(part, 0) >= 0.05 for _, run in timed)]
    text, rows = "", []
    for index, run in timed:
        total = sum(run.seconds.values())
        blocks = ""
        for part in parts:
            word, colour = PARTS[part]
            width = run.seconds.get(part, 0) / total
            blocks += f'<span style="width: {width:.2%}; background: {colour}" title="{word}"></span>'
        text += f'<h3>{labelled(index, run.name)}</h3><div class="timebar">{blocks}</div>\n'
        shares = [f"{run.seconds.get(p, 0):,.1f} s, {run.seconds.get(p, 0) / total:.0%}" for p in parts]
        rows.append([labelled(index, run.name), f"{total:,.1f} s", str(run.starts or "-"), *shares])
    keys = [Markup(f'<span class="key" style="--own: {PARTS[p][1]}">{PARTS[p][0]}</span>') for p in parts]
    text += table(["run", "total", "starts", *keys], rows)
    without = [run.name for run in runs if not run.seconds]
    return text + (sentence(f"Not stored: {', '.join(without)}.") if without else "")


SECTIONS: dict[str, Callable[[Sequence[RunView]], str]] = {
    "Figures": figures_section,
    "Learning curves": curves_section,
    "Accuracy and cost": tradeoff_section,
    "Confusion": confusion_section,
    "Calibration": calibration_section,
    "Worst mistakes": mistakes_section,
    "Pictures of the evaluators": drawn_section,
    "Settings": settings_section,
    "Time": time_section,
}
