"""Scores of captions against references: BLEU, ROUGE-L, CIDEr-D and, with Java, METEOR and SPICE.

The scorers are those of the package `pycocoevalcap` (the extra `captions`), COCO's own. Texts are compared as
words between single spaces: `ptb.tokenize` makes them as the official script does.

    BLEU-n    n-gram precision of the whole corpus, closest reference length, brevity penalty
    ROUGE-L   longest common subsequence, F with beta 1.2, best precision and recall over references
    CIDEr-D   cosine of tf-idf weighted n-grams, clipped, with a length penalty; idf of these references
"""

import importlib
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lookupjax.errors import UserError, nearest

Id = TypeVar("Id", int, str)
PURE = ("bleu", "rouge_l", "cider")  # without Java
METRICS = (*PURE, "meteor", "spice")
SCORERS = {
    "bleu": ("bleu.bleu", "Bleu"),
    "rouge_l": ("rouge.rouge", "Rouge"),
    "cider": ("cider.cider", "Cider"),
    "meteor": ("meteor.meteor", "Meteor"),
    "spice": ("spice.spice", "Spice"),
}
PACKAGE = "pycocoevalcap"
SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"  # not part of the package


def scorer(metric: str) -> Any:
    """The package's scorer."""
    module, name = SCORERS[metric]
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)()


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises UserError for an unknown one."""
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(
                f"there is no caption score {metric!r}{nearest(metric, METRICS)}; there are {METRICS}"
            )


def missing(metric: str) -> str:
    """Why a metric cannot be computed here, or ""."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        return f"{PACKAGE} is not installed (pip install -e '.[captions]')"
    if metric in PURE:
        return ""
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    parser = Path(package.submodule_search_locations[0]) / "spice/lib" / SPICE_MODELS
    if metric == "spice" and not parser.exists():
        return (
            f"SPICE's parser {SPICE_MODELS} is not there (`python -m {PACKAGE}.spice.get_stanford_models` "
            "fetches it)"
        )
    return ""


def score(
    references: Mapping[Id, Sequence[str]], candidates: Mapping[Id, str], metrics: Sequence[str] = PURE
) -> tuple[dict[str, float], dict[str, dict[Id, float]]]:
    """(corpus scores, {score: {id: that of one candidate}}), as "bleu1" to "bleu4" and the others' names.

    Raises:
      UserError: for an unknown metric or one that is `missing`, or texts that are not of the same images.
    """
    check_metrics(metrics)
    for metric in metrics:
        if why := missing(metric):
            raise UserError(f"{metric} cannot be computed: {why}")
    if references.keys() != candidates.keys() or not candidates:
        raise UserError("captions and references must be of the same images, at least one")
    truth = {i: list(references[i]) for i in candidates}
    texts = {i: [candidates[i]] for i in candidates}
    totals: dict[str, float] = {}
    each: dict[str, dict[Id, float]] = {}
    for metric in metrics:
        extra = {"verbose": 0} if metric == "bleu" else {}
        total, single = scorer(metric).compute_score(truth, texts, **extra)
        if metric == "spice":
            single = [scores["All"]["f"] for scores in single]
        names = [f"bleu{n}" for n in (1, 2, 3, 4)] if metric == "bleu" else [metric]
        ids = sorted(texts) if metric == "spice" else texts
        for name, value, values in zip(names, np.atleast_1d(total), single if metric == "bleu" else [single]):
            totals[name], each[name] = float(value), dict(zip(ids, map(float, values)))
    return totals, each
