"""Re-identification: who among the gallery is the one in the query? Mean average precision and CMC.

The ranking is by cosine similarity of the model's "features". As in Market-1501 and VeRi-776, gallery
images of the query's identity from the query's own camera are ignored.

    {"type": "retrieval", "query": "query", "gallery": "gallery", "camera": "camera"}
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from lookupjax.errors import UserError
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.ranking import average_precision, cosine, matching_curve, ranked_hits

CHUNK = 1024  # queries ranked at once


@dataclass(frozen=True)
class Columns:
    """Picks an output and keys of the batch; equal ones share a program."""

    output: str
    keys: tuple[str, ...]

    def __call__(self, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, jax.Array]:
        missing = [k for k in self.keys if k not in batch] or [o for o in (self.output,) if o not in outputs]
        if missing:
            raise UserError(f"there is no {missing[0]!r} in {sorted(batch)} or {sorted(outputs)}")
        return {k: batch[k] for k in self.keys} | {"embedding": outputs[self.output]}


def chunks(count: int) -> Iterator[slice]:
    """Slices of at most CHUNK that cover `count`."""
    return (slice(first, first + CHUNK) for first in range(0, count, CHUNK))


class Evaluator:
    """map, cmc1, cmc5, cmc10 per call, in [0, 1], over the queries that have a match.

    Args:
      query: split of the queries; default: `config.data.eval_split`.
      gallery: split that is searched; default: the queries' own, each without itself.
      label: key of the identity.
      camera: key of the camera, "" for none.
      output: the model's output that is compared.
      ranks: of the cumulative matching curve.
      data: changes to `config.data`.
    """

    def __init__(
        self,
        context: Context,
        *,
        query: str = "",
        gallery: str = "",
        label: str = "label",
        camera: str = "",
        output: str = "features",
        ranks: tuple[int, ...] = (1, 5, 10),
        data: Mapping[str, Any] | None = None,
    ):
        self.context, self.ranks, self.label, self.camera = context, ranks, label, camera
        self.queries = context.batches(query, data)
        self.gallery = context.batches(gallery, data) if gallery else self.queries
        self.columns = Columns(output, (label, camera) if camera else (label,))

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            query = self.context.collect(self.columns, params, stats, self.queries, call)
            own = self.gallery is self.queries
            gallery = query if own else self.context.collect(self.columns, params, stats, self.gallery, call)
            results[call_name(call)] = self.figures(query, gallery, own)
        return results

    def figures(
        self, query: Mapping[str, np.ndarray], gallery: Mapping[str, np.ndarray], own: bool
    ) -> dict[str, float]:
        """The figures of embedded queries in an embedded gallery, their own where `own`."""
        precision, curves, weights = [], [], []
        for part in chunks(len(query["embedding"])):
            same = query[self.label][part, None] == gallery[self.label][None]
            ignored = np.zeros_like(same)
            if self.camera:
                ignored |= same & (query[self.camera][part, None] == gallery[self.camera][None])
            if own:
                rows = np.arange(len(same))
                ignored[rows, rows + part.start] = True
            similarity = cosine(query["embedding"][part], gallery["embedding"])
            hits, _ = ranked_hits(similarity, same, ignored)
            precision.append(average_precision(hits))
            if hits.any():
                curves.append(matching_curve(hits))
                weights.append(hits.any(1).sum())
        if not curves:
            raise UserError("no query has a match in the gallery; check the splits and keys")
        curve = np.average(curves, axis=0, weights=weights)
        cmc = {f"cmc{rank}": float(curve[min(rank, len(curve)) - 1]) for rank in self.ranks}
        mean = float(np.nanmean(np.concatenate(precision)))
        return {"map": mean} | cmc | {"examples": len(query["embedding"])}
