"""Budgeted early exit: thresholds from a validation split, then accuracy and cost (arXiv 2306.11248).

An image leaves at the first exit k whose confidence, the largest softmax probability, is at least T_k. The
thresholds follow from the share of the images that should leave at each exit; a schedule of shares gives
the curve of accuracy against cost. Everything here is NumPy over exits (e) and examples (n).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, Int

NEVER, ALWAYS = 1e8, -1e8
DAMPING = (0.85, 1.0, 0.5)  # of the shares of the first exits, as the reference tuned them


def exit_shares(exits: int) -> Float[np.ndarray, "s e"]:
    """The schedule: 33 distributions over exits, from the cheapest to the dearest.

    Row i is proportional to p^1, p^2, ... with p = (i + 4) / 20 up to i = 16, then 20 / (37 - i); the
    first shares are then damped, the later ones enlarged to sum to 1.
    """
    powers = [(i + 4) / 20 for i in range(17)] + [20 / (37 - i) for i in range(17, 33)]
    shares = np.asarray(powers)[:, None] ** np.arange(1, exits + 1)[None]
    shares /= shares.sum(1, keepdims=True)
    for j, factor in enumerate(DAMPING[: exits - 1]):
        shares[:, j] *= factor
        later = shares[:, j + 1 :].sum(1, keepdims=True)
        shares[:, j + 1 :] *= (1 - shares[:, : j + 1].sum(1, keepdims=True)) / later
    return shares.astype(np.float32)


def confidence_and_hits(
    probabilities: Float[np.ndarray | Array, "e n k"], label: Int[np.ndarray | Array, "n"]
) -> tuple[Float[np.ndarray, "e n"], Bool[np.ndarray, "e n"]]:
    """The largest probability of every exit, and whether it is the label's."""
    probabilities = np.asarray(probabilities)
    return probabilities.max(-1), probabilities.argmax(-1) == np.asarray(label)[None]


def find_thresholds(
    confidence: Float[np.ndarray, "e n"], share: Float[np.ndarray, "e"]
) -> Float[np.ndarray, "e"]:
    """T_k: the confidence of the floor(n share_k)-th most confident image that has not left before k."""
    exits, n = confidence.shape
    limits = np.full(exits, NEVER, np.float32)
    left = np.zeros(n, bool)
    for k in range(exits - 1):
        leave = math.floor(np.float32(n) * share[k])
        waiting = np.sort(confidence[k][~left])[::-1]
        if 1 <= leave <= len(waiting):
            limits[k] = waiting[leave - 1]
        left |= confidence[k] >= limits[k]
    limits[-1] = ALWAYS
    return limits


def exit_taken(confidence: Float[np.ndarray, "e n"], limits: Float[np.ndarray, "e"]) -> Int[np.ndarray, "n"]:
    """The exit at which every image leaves."""
    return (confidence >= limits[:, None]).argmax(0)


def accuracy_and_cost(
    confidence: Float[np.ndarray, "e n"],
    hits: Bool[np.ndarray, "e n"],
    limits: Float[np.ndarray, "e"],
    costs: Sequence[float],
) -> tuple[float, float]:
    """(share of right predictions, mean cost per image) when every image leaves at its exit."""
    exits = exit_taken(confidence, limits)
    return float(hits[exits, np.arange(len(exits))].mean()), float(np.asarray(costs)[exits].mean())


def within_budget(costs: Sequence[float], accuracies: Sequence[float], budget: float) -> int:
    """The most accurate row that costs at most `budget`; the cheapest where none does."""
    affordable = [i for i, cost in enumerate(costs) if cost <= budget]
    if not affordable:
        return int(np.argmin(costs))
    return max(affordable, key=lambda i: (accuracies[i], -costs[i]))
