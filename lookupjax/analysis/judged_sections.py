"""The sections of a report page on single examples: confusion, calibration, worst mistakes."""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lookupjax.analysis.page import folded, sentence, table
from lookupjax.analysis.pictures import data_uri
from lookupjax.analysis.plots import Bins, calibration_error, draw_reliability
from lookupjax.analysis.run_view import Judged, RunView, chart, labelled

MATRIX = 40  # classes in a confusion matrix; of more, the most confused pairs are listed
LISTED = 20


def of_judged(
    runs: Sequence[RunView], show: Callable[[Judged], str], missing: str, beside: bool = True
) -> str:
    """show(...) of everything judged, folded but for each run's last call; `beside`: runs share a row."""
    text = ""
    for index, run in enumerate(runs):
        text += "<div>" + (f"<h3>{labelled(index, run.name)}</h3>\n" if len(runs) > 1 else "")
        for judged in run.judged:
            text += folded(judged.title, show(judged), judged is run.judged[-1])
        if not run.judged:
            text += sentence(no_choices(run, missing))
        text += "</div>\n"
    return f'<div class="charts">{text}</div>\n' if beside else text


def no_choices(run: RunView, missing: str) -> str:
    if not run.chooses:
        return f"There is no {missing}: the task {run.task} does not choose among classes."
    if not run.finished:
        return f"There is no {missing} yet: the run is not finished, and none of its evaluations is stored."
    return (
        f"There is no {missing}: the work directory holds no predictions of single examples; to make them, "
        f"run python -m lookupjax.evaluate --workdir={run.place}"
    )


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes): how often row was predicted as column."""
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def confusion_table(judged: Judged) -> str:
    """The matrix, or of many classes the most confused pairs and the worst classes."""
    classes = 1 + max(int(judged.label.max()), int(judged.predicted.max()), len(judged.words) - 1)
    if classes > MATRIX:
        return confused_pairs(judged, classes)
    counts = confusion(judged.label, judged.predicted, classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    words = [judged.word(i) for i in range(classes)]
    short = words if max(map(len, words)) <= 5 else [str(i) for i in range(classes)]
    stubs = [w if w == s else f"{s} {w}" for w, s in zip(words, short)]
    rows = []
    for i in range(classes):
        row = ""
        for j in range(classes):
            colour = f"rgba(var(--{'hot' if i == j else 'wrong'}), {tint(shares[i, j], i == j):.2f})"
            said = html.escape(f"{words[i]} taken for {words[j]}")
            row += f'<td style="background: {colour}" title="{said}">{counts[i, j] or ""}</td>'
        rows.append(f"<tr><td>{html.escape(stubs[i])}</td>{row}<td>{shares[i, i]:.0%}</td></tr>\n")
    head = "".join(f"<th>{html.escape(word)}</th>" for word in short)
    return (
        '<div class="scroll" tabindex="0"><table class="confusion"><thead><tr><th>label</th>'
        f"{head}<th>right</th></tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    ) + sentence("Rows: the label; columns: the prediction; numbers: examples.")


def tint(share: float, right: bool) -> float:
    """Opacity of a cell: mistakes are rare, so that few of them show too."""
    return 0.45 * share if right else min(0.85, 2.5 * math.sqrt(share)) if share else 0.0


def confused_pairs(judged: Judged, classes: int) -> str:
    """Two tables: pairs of classes by the number of confusions, classes by their accuracy."""
    wrong = judged.label != judged.predicted
    pairs = judged.label[wrong].astype(np.int64) * classes + judged.predicted[wrong]
    pair, count = np.unique(pairs, return_counts=True)
    of_label = np.bincount(judged.label, minlength=classes)
    right = np.bincount(judged.label[~wrong], minlength=classes)
    rows = []
    for i in np.argsort(-count, kind="stable")[:LISTED]:
        a, b = divmod(int(pair[i]), classes)
        rows.append([judged.word(a), judged.word(b), f"{count[i]:,}", f"{count[i] / of_label[a]:.0%}"])
    seen = np.flatnonzero(of_label)
    worst = seen[np.argsort(right[seen] / of_label[seen], kind="stable")][:LISTED]
    low = [
        [judged.word(int(c)), f"{right[c]:,} of {of_label[c]:,}", f"{right[c] / of_label[c]:.0%}"]
        for c in worst
    ]
    note = (
        f"{len(seen):,} classes are too many for a matrix. The {len(rows)} most frequent confusions among "
        f"{int(wrong.sum()):,} mistakes, and the {len(low)} classes with the lowest accuracy:"
    )
    first = table(["label", "taken for", "times", "of its examples"], rows)
    second = table(["class", "right", "accuracy"], low)
    return f'{sentence(note)}<div class="charts"><div>{first}</div><div>{second}</div></div>\n'


def confusion_section(runs: Sequence[RunView]) -> str:
    return of_judged(runs, confusion_table, "confusion matrix")


def calibration_section(runs: Sequence[RunView]) -> str:
    """A table of the calibration errors and a diagram each."""
    rows = []
    for index, run in enumerate(runs):
        for judged in run.judged:
            accuracy = float((judged.label == judged.predicted).mean())
            confidence = float(judged.confidence.mean(dtype=np.float64))
            lean = "over-confident" if confidence > accuracy else "under-confident"
            figures = [f"{calibration_error(judged.bins):.4f}", f"{accuracy:.2%}", f"{confidence:.2%}", lean]
            rows.append([labelled(index, run.name), judged.title, f"{len(judged.label):,}", *figures])
    text = ""
    if rows:
        headings = ["run", "at", "examples", "ECE", "accuracy", "mean confidence", "on the whole"]
        text = table(headings, rows) + sentence(
            "ECE: expected calibration error, the mean distance of accuracy and confidence over bins of "
            "confidence, weighted by their examples."
        )

    def diagram(judged: Judged) -> str:
        return chart(labelled_reliability, judged.bins, rows=(3, 1))

    return text + of_judged(runs, diagram, "calibration")


def labelled_reliability(upper: Any, lower: Any, bins: Bins) -> None:
    draw_reliability(upper, lower, bins)
    upper.set_title(f"calibration error {calibration_error(bins):.1%}")
    upper.set_ylabel("accuracy")
    lower.set_ylabel("share")


def mistakes_section(runs: Sequence[RunView]) -> str:
    return of_judged(runs, mistake_cards, "list of mistakes", beside=False)


def mistake_cards(judged: Judged) -> str:
    """The most confident wrong predictions."""
    wrong = int((judged.label != judged.predicted).sum())
    if not wrong:
        return sentence(f"All {len(judged.label):,} examples are right.")
    cards = ""
    for place, data in judged.pictures.items():
        label, predicted = (html.escape(judged.word(int(x[place]))) for x in (judged.label, judged.predicted))
        cards += (
            f'<figure><img src="{data_uri(data)}" alt="example {judged.index[place]}">'
            f"<figcaption><b>{predicted}</b> {judged.confidence[place]:.1%}<br>"
            f"label {label} {judged.probability[place]:.1%}<br>"
            f"<small>example {judged.index[place]}</small></figcaption></figure>\n"
        )
    shown = len(judged.pictures)
    many = f"The {shown} most confident" if shown < wrong else "All"
    note = (
        f"{many} of {wrong:,} mistakes among {len(judged.label):,} examples: the prediction with its "
        "confidence, then the label with its probability."
    )
    return f'{sentence(note)}<div class="cards">{cards}</div>\n'
