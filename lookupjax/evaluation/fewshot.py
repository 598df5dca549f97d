"""Few-shot linear probe: ridge regression in closed form on frozen features, as in big_vision.

{"type": "fewshot", "train_split": "train", "shots": (1, 5, 10, 25)}

features standardised over the shots, a constant 100 appended (the bias, hardly regularised);
targets Y in {-1, 1}^(n x classes);  W = (X^T X + l2 I)^-1 X^T Y;  prediction: argmax of x W
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lookupjax.errors import UserError
from lookupjax.evaluation.context import Context, call_name

BIAS = 100.0
STD_FLOOR = 1e-5
GRID = tuple(2.0**k for k in range(-10, 21))


def features(outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
    """The representations that are probed, by the prefix of their head, and the label.

    Of a LookupViT both (side by side), the compressed and the lookup tokens' mean.
    """
    if "features" not in outputs:
        raise UserError(f"the model gives no features, only {sorted(outputs)}")
    found = {"features": outputs["features"]}
    if "features_lookup" in outputs:
        parts = {"compressed/": outputs["features"], "lookup/": outputs["features_lookup"]}
        found = {f"{head}features": value for head, value in parts.items()}
        found["features"] = jnp.concatenate(list(parts.values()), axis=-1)
    return {name: value.astype(jnp.float32) for name, value in found.items()} | {"label": batch["label"]}


class Probe(NamedTuple):
    """A decomposed regression: its weights for any l2 are left diag(1 / (eigenvalues + l2)) right."""

    eigenvalues: Float[np.ndarray, "m"]
    left: Float[np.ndarray, "d m"]
    right: Float[np.ndarray, "m k"]
    mean: Float[np.ndarray, "c"]
    std: Float[np.ndarray, "c"]

    def accuracy(self, x: Float[np.ndarray, "n c"], y: Int[np.ndarray, "n"], l2: float) -> float:
        """Share of right predictions."""
        weights = (self.left / (self.eigenvalues + l2)[None]) @ self.right
        return float(((with_bias((x - self.mean) / self.std) @ weights).argmax(-1) == y).mean())


def with_bias(x: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n d"]:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


def fit(x: Float[np.ndarray, "n c"], y: Int[np.ndarray, "n"], classes: int) -> Probe:
    """Decomposes X^T X, or X X^T where there are fewer examples than features (the same weights)."""
    x = x.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + STD_FLOOR
    x = with_bias((x - mean) / std)
    target = 2.0 * np.eye(classes)[y] - 1.0
    if len(x) >= x.shape[1]:
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        return Probe(eigenvalues, q, q.T @ (x.T @ target), mean, std)
    eigenvalues, q = np.linalg.eigh(x @ x.T)
    return Probe(eigenvalues, x.T @ q, q.T @ target, mean, std)


def choose_shots(
    labels: Int[np.ndarray, "n"], classes: int, shots: int, random: np.random.Generator
) -> Int[np.ndarray, "m"]:
    """Indices of `shots` random examples of every class (all, where there are fewer)."""
    of_class = [random.permutation(np.flatnonzero(labels == c))[:shots] for c in range(classes)]
    return np.concatenate(of_class)


class Evaluator:
    """ "<shots>shot": accuracy at the best l2 of the grid on average over seeds, "<shots>shot_l2": that l2.

    With one l2 in the grid (big_vision's evaluations use 2^10) nothing is chosen on the test split.

    Args:
      split: the test examples; default: `config.data.eval_split`.
      train_split: where shots are drawn from; "": `config.data.train_split`.
      data: changes to `config.data`: any dataset can be probed, whatever the model was trained on.
      shots: examples per class. seeds: draws of them that are averaged.
      l2: the grid of the regularisation.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        train_split: str = "",
        data: Mapping[str, Any] | None = None,
        shots: Sequence[int] = (1, 5, 10, 25),
        seeds: int = 3,
        l2: Sequence[float] = GRID,
    ):
        if not shots or not l2 or seeds < 1:
            raise UserError("fewshot needs shots, a grid of l2 and at least one seed")
        self.context, self.shots, self.seeds, self.l2 = context, tuple(shots), seeds, tuple(l2)
        self.train = context.batches(train_split or context.data_config(data).train_split, data)
        self.test = context.batches(split, data)
        self.classes = context.info(data).num_classes

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            train, test = (
                self.context.collect(features, params, stats, batches, call)
                for batches in (self.train, self.test)
            )
            figures: dict[str, float] = {}
            for name in [n for n in test if n.endswith("features")]:
                probed = self.probe(train[name], train["label"], test[name], test["label"])
                figures |= {f"{name.removesuffix('features')}{k}": v for k, v in probed.items()}
            results[call_name(call)] = figures | {"examples": len(test["label"])}
        return results

    def probe(self, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> dict[str, float]:
        """The figures of one representation."""
        figures = {}
        for shots in self.shots:
            table = []
            for seed in range(self.seeds):
                chosen = choose_shots(y, self.classes, shots, np.random.default_rng(seed))
                probe = fit(x[chosen], y[chosen], self.classes)
                table.append([probe.accuracy(x_test, y_test, l2) for l2 in self.l2])
            accuracy = np.mean(table, axis=0)
            best = int(accuracy.argmax())
            figures |= {f"{shots}shot": float(accuracy[best]), f"{shots}shot_l2": float(self.l2[best])}
        return figures
