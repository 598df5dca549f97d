"""Retrieval by attribute: in the space of an attribute, are images with the query's value the nearest?

Mean average precision per attribute, each image of the split against all others, ranked by cosine
similarity in that attribute's space (CCAN, arXiv 2307.13254; ASEN). `map_wrong` searches for an attribute
in the other attributes' spaces: entangled spaces, or one for all, have it as high as `map`.

    {"type": "attributes", "names": ("digit", "ink", "paper")}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lookupjax.errors import UserError
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.ranking import average_precision, cosine, ranked_hits
from lookupjax.evaluation.retrieval import Columns, chunks


def mean_precision(embedding: Float[np.ndarray, "n e"], value: Int[np.ndarray, "n"]) -> float:
    """mAP of every image as a query to all others; those with a value of their own are left out."""
    precision = []
    for part in chunks(len(value)):
        same = value[part, None] == value[None]
        ignored = np.zeros_like(same)
        rows = np.arange(len(same))
        ignored[rows, rows + part.start] = True
        precision.append(average_precision(ranked_hits(cosine(embedding[part], embedding), same, ignored)[0]))
    whole = np.concatenate(precision)
    return float(np.nanmean(whole)) if np.isfinite(whole).any() else float("nan")


class Evaluator:
    """map (mean over attributes), map_NAME of each and map_wrong, per call.

    Args:
      names: of the attributes, in the order of `key`; default: their numbers.
      key: the batch's attribute values (b, attributes).
      output: embeddings (b, attributes, e), or (b, e) of a model with one space for all.
      split, data: default: those of the training's evaluation.
    """

    def __init__(
        self,
        context: Context,
        *,
        names: tuple[str, ...] = (),
        key: str = "attributes",
        output: str = "embedding",
        split: str = "",
        data: Mapping[str, Any] | None = None,
    ):
        self.context, self.names, self.key = context, names, key
        self.batches, self.columns = context.batches(split, data), Columns(output, (key,))

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.columns, params, stats, self.batches, call)
            results[call_name(call)] = self.figures(columns["embedding"], columns[self.key])
        return results

    def figures(
        self, embedding: Float[np.ndarray, "n ..."], values: Int[np.ndarray, "n c"]
    ) -> dict[str, float]:
        """The figures of embedded images.

        Raises:
          UserError: when there are not as many names or spaces as attributes.
        """
        count = values.shape[1]
        names = self.names or tuple(str(i) for i in range(count))
        spaces = embedding if embedding.ndim == 3 else embedding[:, None]
        if len(names) != count or spaces.shape[1] not in (1, count):
            raise UserError(f"{count} attributes, but {len(names)} names and {spaces.shape[1]} spaces")
        table = np.array(
            [
                [mean_precision(spaces[:, s], values[:, a]) for s in range(spaces.shape[1])]
                for a in range(count)
            ]
        )  # (attribute, space)
        own = table.diagonal() if spaces.shape[1] == count else table[:, 0]
        wrong = table[~np.eye(count, dtype=bool)] if spaces.shape[1] == count else table[:, 0]
        each = {f"map_{name}": float(v) for name, v in zip(names, own)}
        return {"map": float(own.mean()), "map_wrong": float(wrong.mean())} | each | {"examples": len(values)}
