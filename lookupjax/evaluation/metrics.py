"""Figures of whole splits, as pure NumPy functions: calibration, detection, corruption errors."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# Top-1 error of AlexNet on each corruption of ImageNet-C, averaged over the five severities: Hendrycks &
# Dietterich (arXiv 1903.12261), rounded in their table 1, in full in the ImageNet-C evaluation scripts.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


class Reliability(NamedTuple):
    """Examples per bin of confidence, and their mean confidence and accuracy (0 where there are none)."""

    examples: Int[np.ndarray, "bins"]
    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]

    @property
    def error(self) -> float:
        """Expected calibration error (arXiv 1706.04599, eq. 3): sum over bins of n_b / n |acc_b - conf_b|."""
        gap = np.abs(self.accuracy - self.confidence)
        return float((self.examples * gap).sum() / max(self.examples.sum(), 1))


def reliability(
    confidence: Float[np.ndarray, "n"], correct: Float[np.ndarray, "n"], bins: int = 15
) -> Reliability:
    """Sorts examples into `bins` equal intervals of confidence, (0, 1/bins], ..., (1 - 1/bins, 1]."""
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=v, minlength=bins) for v in (confidence, correct)]
    return Reliability(count, *(total / np.maximum(count, 1) for total in sums))


def average_precision(score: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float:
    """Area under the precision-recall curve (AUPR): sum over thresholds of (R_k - R_{k-1}) P_k.

    Higher scores mean "positive"; examples of equal score share one threshold. The step-wise sum, without
    interpolation, is what ImageNet-O's authors report.
    """
    order = np.argsort(-score, kind="stable")
    score, positive = score[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of each run of equal scores
    hits = np.cumsum(positive)[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def corruption_errors(errors: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """ImageNet-C's summary of top-1 errors {corruption: {severity: error}}, in percent.

    CE_c = sum over severities of E_{s,c} / the same sum of AlexNet, for each of the 15 corruptions; mCE is
    their mean (arXiv 1903.12261, section 3). Corruptions beyond the 15 have no part in it.

    Returns:
      {"mce": ..., "ce/<corruption>": ...}, of the corruptions given; "mce" only if all 15 are.
    """
    ces = {
        name: 100.0 * float(np.mean(list(errors[name].values()))) / alexnet
        for name, alexnet in ALEXNET_ERRORS.items()
        if name in errors
    }
    whole = {"mce": float(np.mean(list(ces.values())))} if len(ces) == len(ALEXNET_ERRORS) else {}
    return whole | {f"ce/{name}": ce for name, ce in ces.items()}
