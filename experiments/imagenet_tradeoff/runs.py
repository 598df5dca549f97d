"""The runs of LookupViT's comparison, on ImageNet and, scaled down, on the digits; and what was published."""

from dataclasses import dataclass

from lookupjax.analysis.plots import Point


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      name: of its work directory.
      series: the line of the plot that it belongs to.
      config: of `lookupjax.train`, with its argument.
      overrides: further arguments of `lookupjax.train`.
    """

    name: str
    series: str
    config: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """A list of runs, the first of which is the baseline of every comparison.

    Attributes:
      columns: figure of results.json -> heading, beside the accuracy.
      published: points of other trainings, as (label, MACs, top-1).
    """

    runs: tuple[Run, ...]
    columns: dict[str, str]
    published: tuple[Point, ...] = ()
    sources: tuple[str, ...] = ()


SHIFTED = tuple(
    f"--config.evaluators.{name}.type={kind}"
    for name, kind in (("val", "classification"), ("real", "real"), ("o", "outliers"), ("c", "corruptions"))
)
IMAGENET = Scale(
    runs=(
        Run("vit_b16", "ViT", "configs/imagenet/vit.py:B/16,shifts", SHIFTED),
        Run("vit_s16", "ViT", "configs/imagenet/vit.py:S/16,shifts", SHIFTED),
        *(
            Run(
                f"lookupvit_b16_{grid}",
                "LookupViT, one grid each" if grid != "multi" else "LookupViT, one model",
                f"configs/imagenet/lookupvit.py:B/16,{grid},shifts",
                SHIFTED,
            )
            for grid in ("3x3", "5x5", "7x7", "10x10", "multi")
        ),
    ),
    columns={
        "val/compressed/accuracy": "compressed head",
        "val/lookup/accuracy": "lookup head",
        "val/ece": "ECE",
        "real/accuracy": "ReaL",
        "v2/accuracy": "-V2",
        "sketch/accuracy": "-Sketch",
        "a/accuracy": "-A",
        "r/accuracy": "-R",
        "o/aupr": "-O AUPR",
        "c/mce": "-C mCE",
    },
    published=(
        Point("ViT-B/16", 17.58e9, 0.797),
        Point("DeiT-Ti", 1.26e9, 0.722),
        Point("DeiT-S", 4.61e9, 0.798),
        Point("DeiT-B", 17.58e9, 0.818),
    ),
    sources=(
        "ViT-B/16: 79.7 %, scenic's AugReg recipe from scratch, 300 epochs (the recipe of these runs)",
        "DeiT: 72.2, 79.8, 81.8 %, arXiv 2012.12877, table 7, another recipe; MACs counted here",
    ),
)
DIGITS = Scale(
    runs=(
        Run("vit", "ViT", "experiments/imagenet_tradeoff/digits.py:vit"),
        *(
            Run(
                f"lookupvit_{grid}",
                "LookupViT, one grid each" if grid != "multi" else "LookupViT, one model",
                f"experiments/imagenet_tradeoff/digits.py:{grid}",
            )
            for grid in ("2x2", "3x3", "4x4", "6x6", "multi")
        ),
    ),
    columns={
        "val/compressed/accuracy": "compressed head",
        "val/lookup/accuracy": "lookup head",
        "val/ece": "ECE",
        "corrupted/mean_accuracy": "corrupted",
    },
)
SCALES = {"imagenet": IMAGENET, "digits": DIGITS}
