"""Retrieval figures: queries against a gallery ranked by cosine similarity (NumPy, float64)."""

import numpy as np
from jaxtyping import Bool, Float


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length one."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def cosine(query: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"]) -> Float[np.ndarray, "q g"]:
    """Cosine similarities."""
    return unit(query) @ unit(gallery).T


def ranked_hits(
    similarity: Float[np.ndarray, "q g"],
    relevant: Bool[np.ndarray, "q g"],
    ignored: Bool[np.ndarray, "q g"] | None = None,
) -> tuple[Bool[np.ndarray, "q g"], Bool[np.ndarray, "q g"]]:
    """(relevance from the best to the worst match, which of these entries count): ignored ones go last."""
    counted = np.ones_like(relevant) if ignored is None else ~ignored
    order = np.argsort(np.where(counted, -similarity, np.inf), axis=1, kind="stable")
    return tuple(np.take_along_axis(x, order, axis=1) for x in (relevant & counted, counted))


def average_precision(hits: Bool[np.ndarray, "q g"]) -> Float[np.ndarray, "q"]:
    """Mean over a query's hits of (hits so far / rank); NaN for a query without any."""
    found = np.cumsum(hits, axis=1)
    precision = found / np.arange(1, hits.shape[1] + 1)
    total = hits.sum(1)
    return np.where(total > 0, (precision * hits).sum(1) / np.maximum(total, 1), np.nan)


def matching_curve(hits: Bool[np.ndarray, "q g"]) -> Float[np.ndarray, "g"]:
    """CMC: entry k - 1 is the share of queries with a hit among their k best matches.

    Queries without any hit are left out, as in the protocols of Market-1501 and VeRi-776.
    """
    hits = hits[hits.any(1)]
    return (np.cumsum(hits, axis=1) > 0).mean(0) if len(hits) else np.full(hits.shape[1], np.nan)
