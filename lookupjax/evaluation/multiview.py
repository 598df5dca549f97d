"""Accuracy on videos from several views of each: clips in time x crops in space, their logits averaged.

    {"type": "multiview", "clips": 4, "crops": 3}

The views are those of `data.eval_transforms` with other numbers: "clips" of its `even_clips` or
`even_segments`, "crops" of its `spatial_crops`. Every video counts once, on any number of processes. The
logits of every view are saved beside the other results of the run, as views_<call>.npz with "label" (n,),
"logits" (n, views, classes) and, of models with several heads, "compressed/logits" and the like; the views of
a clip stand next to each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.data.mixing import normalize_images
from lookupjax.data.transforms import Normalize, build_transforms, split_normalize
from lookupjax.errors import UserError
from lookupjax.evaluation.classification import class_space
from lookupjax.evaluation.context import Context, OfModel, call_name
from lookupjax.evaluation.figures import means
from lookupjax.evaluation.labels import ClassLogits, class_figures
from lookupjax.tasks.base import Batch, Task

AVERAGES = ("logits", "probabilities")


@dataclass(frozen=True)
class PerView(OfModel):
    """{"logits": (b, views, k), ..., "label": (b,)}: one view after the other, so memory is that of one."""

    classes: ClassLogits
    normalize: Normalize | None

    def of_model(self, task: Task, model: nnx.Module, batch: Batch, **call: Any) -> dict[str, jax.Array]:
        views = batch["image"]
        views = views[:, None] if views.ndim == 5 else views

        def one(view: jax.Array) -> dict[str, jax.Array]:
            image = view if self.normalize is None else normalize_images(view, self.normalize)
            return self.classes.logits(task.predict(model, dict(batch) | {"image": image}, **call))

        logits = jax.lax.map(one, jnp.moveaxis(views, 1, 0))
        named = {f"{head}logits": jnp.moveaxis(value, 0, 1) for head, value in logits.items()}
        return named | {"label": batch["label"]}


def average(logits: np.ndarray, over: str) -> np.ndarray:
    """(n, views, k) -> (n, k): the mean logits, or the logarithm of the mean probabilities; float64 sums."""
    if over == "logits":
        return logits.mean(1, dtype=np.float64)
    top = logits.max(-1, keepdims=True)
    exponentials = np.exp(logits.astype(np.float64) - top)
    return np.log((exponentials / exponentials.sum(-1, keepdims=True)).mean(1))


def with_views(
    transforms: tuple[Mapping[str, Any], ...], clips: int, crops: int
) -> tuple[dict[str, Any], ...]:
    """The evaluation's transforms with other numbers of clips and crops.

    Raises:
      UserError: where more than one is asked of a pipeline without the transform for it.
    """
    changed = []
    for number, key, names in (
        (clips, "clips", ("even_clips", "even_segments")),
        (crops, "crops", ("spatial_crops",)),
    ):
        if number < 1:
            raise UserError(f"{key}={number} must be at least 1")
        if number > 1 and not any(t["name"] in names for t in transforms):
            raise UserError(f"{key}={number} needs {' or '.join(names)} among data.eval_transforms")
        changed += [(name, key, number) for name in names]
    return tuple(
        dict(t) | {key: number for name, key, number in changed if name == t["name"]} for t in transforms
    )


class Evaluator:
    """accuracy, top5 and nll of the averaged views, per call and head.

    Args:
      clips, crops: views in time and in space; 4 x 3 is ViViT's, 1 x 3 the usual one of Something-Something.
      over: what is averaged, "logits" or "probabilities".
      save: write the logits of every view.
      split, data: default: those of the training's evaluation.

    Raises:
      UserError: see `with_views`; also for another `over`.
    """

    def __init__(
        self,
        context: Context,
        *,
        clips: int = 4,
        crops: int = 3,
        over: str = "logits",
        save: bool = True,
        split: str = "",
        data: Mapping[str, Any] | None = None,
    ):
        if over not in AVERAGES:
            raise UserError(f"over={over!r} is unknown; choose one of {AVERAGES}")
        transforms = with_views(tuple(context.data_config(data).eval_transforms), clips, crops)
        normalize = split_normalize(build_transforms(transforms))[1]
        if normalize is not None:  # on the device: views travel as bytes
            transforms = transforms[:-1]
        self.context, self.over, self.save = context, over, save
        self.batches = context.batches(split, dict(data or {}) | {"eval_transforms": transforms})
        self.per_view = PerView(ClassLogits(*class_space(context, data)), normalize)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            columns = self.context.collect(self.per_view, params, stats, self.batches, call)
            figures: dict[str, np.ndarray] = {}
            label = jnp.asarray(columns["label"])
            for name, logits in columns.items():
                if name != "label":
                    mean = jnp.asarray(average(logits, self.over).astype(np.float32))
                    head = name.removesuffix("logits")
                    figures |= jax.device_get(class_figures(mean, label, head))
            shown = {name: v for name, v in figures.items() if not name.endswith("confidence")}
            views = columns["logits"].shape[1]
            results[call_name(call)] = means(shown) | {"views": float(views)}
            directory = self.context.drawing_directory() if self.save else None
            if directory:
                np.savez(directory / f"views_{call_name(call) or 'model'}.npz", **columns)
        return results
