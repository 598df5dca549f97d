"""Super-resolution on any dataset: PSNR and SSIM on luma, and enlargements to look at.

    {"set5": {"type": "super_resolution", "data": {"name": "set5"}}}

Images of different sizes need `eval_batch_size=1`; every size is then a program of its own.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lookupjax.analysis.plots import enlargements
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.figures import means
from lookupjax.tasks.super_resolution import bicubic_enlarged, eight_bits, whole

VIEWS = ("low", "bicubic", "model", "original")


class Evaluator:
    """psnr, ssim, bicubic_psnr, bicubic_ssim: means over the images.

    Args:
      split: default: `config.data.eval_split`.
      data: changes to `config.data`, such as another dataset's name.
      pictures: how many images, evenly spread over the first batch, are drawn beside their enlargements.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        data: Mapping[str, Any] | None = None,
        pictures: int = 3,
    ):
        self.context, self.batches, self.pictures = context, context.batches(split, data), pictures

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        context, results = self.context, {}
        for call in context.calls:
            columns = context.collect(context.task.evaluate, params, stats, self.batches, call)
            results[call_name(call)] = means(columns)
            first = next(iter(context.stream(self.views, params, stats, self.batches, call)))
            directory = context.drawing_directory() if self.pictures else None
            if directory:
                count = len(first["original"])
                chosen = np.linspace(0, count - 1, min(self.pictures, count)).astype(int)
                rows = [{name: first[name][i] for name in VIEWS} for i in chosen]
                scores = [
                    {"bicubic": columns["bicubic_psnr"][i], "model": columns["psnr"][i]} for i in chosen
                ]
                name = call_name(call) or "model"
                enlargements(rows, scores, directory / f"enlargements_{name}.png")
        return results

    def views(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What is drawn of each example."""
        scale = self.context.task.scale
        views = {
            "low": outputs["low"],
            "bicubic": bicubic_enlarged(outputs["low"], scale),
            "model": outputs["image"],
            "original": whole(batch["image"], scale),
        }
        return {name: eight_bits(image) for name, image in views.items()}
