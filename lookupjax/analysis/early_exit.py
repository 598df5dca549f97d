"""Budgeted early exit: thresholds from a validation split, then accuracy and cost (arXiv 2306.11248).

An image leaves at the first exit k whose confidence, the largest softmax probability, is at least T_k. The
thresholds follow from the share of the images that should leave at each exit; a schedule of shares gives
the curve of accuracy against cost.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Int

NEVER, ALWAYS = 1e8, -1e8
DAMPING = (0.85, 1.0, 0.5)  # of the shares of the first exits, as the reference tuned them

Probabilities = Float[np.ndarray | Array, "e n k"]


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


def find_thresholds(probabilities: Probabilities, share: Float[np.ndarray, "e"]) -> Float[np.ndarray, "e"]:
    """T_k: the confidence of the floor(n share_k)-th most confident image that has not left before k."""
    confidence = np.asarray(probabilities).max(-1)
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


def exit_taken(probabilities: Probabilities, limits: Float[np.ndarray, "e"]) -> Int[np.ndarray, "n"]:
    """The exit at which every image leaves."""
    return (np.asarray(probabilities).max(-1) >= limits[:, None]).argmax(0)


def accuracy_and_cost(
    probabilities: Probabilities,
    label: Int[np.ndarray | Array, "n"],
    limits: Float[np.ndarray, "e"],
    costs: Sequence[float],
) -> tuple[float, float]:
    """(share of right predictions, mean cost per image) when every image leaves at its exit."""
    exits = exit_taken(probabilities, limits)
    predicted = np.asarray(probabilities).argmax(-1)[exits, np.arange(len(exits))]
    return float((predicted == np.asarray(label)).mean()), float(np.asarray(costs)[exits].mean())
