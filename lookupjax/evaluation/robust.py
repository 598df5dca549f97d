"""Accuracy under attack: PGD with an L-infinity bound (arXiv 1706.06083), at a list of bounds.

An example counts at a bound if it survives the attacks at this and every smaller bound, all of which lie
within it: robust accuracy therefore never rises with eps. At eps 0 nothing is changed: clean accuracy.

    {"type": "robust", "eps": (0, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255), "steps": 10}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lookupjax.errors import UserError
from lookupjax.evaluation.classification import judge_for
from lookupjax.evaluation.context import Context, OfModel, call_name
from lookupjax.evaluation.labels import Judge
from lookupjax.tasks.adversarial import Normalisation, attack, initial_noise
from lookupjax.tasks.base import Batch, Task


def normalisation(transforms: tuple[Mapping[str, Any], ...]) -> Normalisation:
    """What the transform "normalize" among `transforms` does.

    Raises:
      UserError: when there is none, so that the inputs' pixels are not known.
    """
    found = [dict(t) for t in transforms if t["name"] == "normalize"]
    if not found:
        raise UserError("robust accuracy needs a transform 'normalize' in data.eval_transforms")
    return Normalisation(**{k: v for k, v in found[-1].items() if k != "name"})


@dataclass(frozen=True)
class Attacked(OfModel):
    """Whether each example is right after `steps` ascents of the cross-entropy, (b, bounds)."""

    judge: Judge
    normalisation: Normalisation
    eps: tuple[float, ...]
    steps: int
    step: float
    random_start: bool
    seed: int

    def of_model(self, task: Task, model: nnx.Module, batch: Batch, **call: Any) -> dict[str, jax.Array]:
        inputs, label = batch["image"], batch["label"]
        pixels = self.normalisation.pixels(inputs)

        def logits(attacked: jax.Array) -> jax.Array:
            changed = self.normalisation.changed(inputs, pixels, attacked)
            return self.judge.logits(task.predict(model, dict(batch) | {"image": changed}, **call))[""]

        def loss(attacked: jax.Array) -> jax.Array:  # a sum: no example's gradient depends on the others
            return optax.softmax_cross_entropy_with_integer_labels(logits(attacked), label).sum()

        def right(eps: jax.Array) -> jax.Array:
            noise = jnp.zeros_like(pixels)
            if self.random_start:
                noise = initial_noise(pixels, jax.random.key(self.seed), eps)
            step = self.step * eps / self.steps
            worst = attack(loss, pixels, noise, eps=eps, step=step, steps=self.steps)
            return (logits(worst).argmax(-1) == label).astype(jnp.float32)

        return {"right": jax.lax.map(right, jnp.asarray(self.eps, jnp.float32)).T}


class Evaluator:
    """ "accuracy_eps2" and the like: accuracy under PGD at each bound (in 255ths), per call.

    Args:
      eps: bounds of the noise on pixels in [0, 1].
      steps: ascents; 1 is FGSM.
      step: size of an ascent as a multiple of eps / steps; 2.5 is the PGD paper's.
      random_start: whether the noise starts uniform in [-eps, eps].
      split, data: default: those of the training's evaluation.

    Raises:
      UserError: for no or negative bounds, no steps, or data whose pixels are not known.
    """

    def __init__(
        self,
        context: Context,
        *,
        eps: tuple[float, ...] = (0.0, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255),
        steps: int = 10,
        step: float = 2.5,
        random_start: bool = True,
        seed: int = 0,
        split: str = "",
        data: Mapping[str, Any] | None = None,
    ):
        if not eps or min(eps) < 0 or steps < 1:
            raise UserError(f"eps={eps} must hold bounds of at least 0, and steps={steps} be at least 1")
        self.context, self.batches = context, context.batches(split, data)
        pixels = normalisation(context.data_config(data).eval_transforms)
        judge = judge_for(context, data)
        bounds = tuple(sorted(float(e) for e in eps))
        self.attacked = Attacked(judge, pixels, bounds, steps, step, random_start, seed)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            right = self.context.collect(self.attacked, params, stats, self.batches, call)["right"]
            survives = np.minimum.accumulate(right, axis=1).mean(0, dtype=np.float64)
            results[call_name(call)] = {
                f"accuracy_eps{255 * eps:g}": float(share) for eps, share in zip(self.attacked.eps, survives)
            } | {"examples": len(right)}
        return results
