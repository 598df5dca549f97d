"""LookupViT on ImageNet-1K (arXiv 2407.12753): one compressed grid, or one model for all of them.

    python -m lookupjax.train --config=configs/imagenet/lookupvit.py:B/16,5x5 --workdir=runs/lookupvit_b16_5x5
    python -m lookupjax.train --config=configs/imagenet/lookupvit.py:B/16,multi --workdir=runs/lookupvit_b16

Argument: variant (S/16, B/16, L/16), compressed grid (3x3, 5x5, 7x7, 10x10, ...) or "multi" (every step
draws one of the paper's four), resolution (224, 384, ...), "shifts" (also evaluates ImageNet-V2, -Sketch, -A,
-R, -O and ReaL), "smoke" (a minute, anywhere). Default B/16,5x5,224.

Recipe: AugReg, the same as configs/imagenet/vit.py; none was published for LookupViT. Topology: v4:2x2x4 (16
chips, 256 images of the batch on each) or 8 H100; L/16 at 384 pixels: v5e:16x16 or
v5p:4x4x4 with `--config.model.scan=True --config.model.remat=block`. Cost, from the counted
multiply-accumulates at 40 % of 275 TFLOP/s bfloat16: 5x5 at 224 takes 2.0e19 FLOP, about 3 hours on 16 v4
chips; 10x10 twice that. Expected: the paper's tables could not be had. The criterion is within half a point
of the ViT of configs/imagenet/vit.py at half of its compute for 5x5 (the abstract: 2x fewer FLOPs at equal or
better accuracy).
"""

from ml_collections import ConfigDict

from lookupjax.grids import parse_grid
from lookupjax.recipes import AUGREG, SHIFTS, imagenet, model_name, parse, smoke

GRIDS = ((3, 3), (5, 5), (7, 7), (10, 10))  # the paper's


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        variant=(r"(?i)[sbl]/\d+|mu", "B/16"),
        grid=(r"multi|\d+x\d+", "5x5"),
        size=(r"\d+", "224"),
        shifts=("shifts", ""),
    )
    size, multi = int(asked["size"]), asked["grid"] == "multi"
    patch = int(asked["variant"].partition("/")[2] or 4)
    config = imagenet(
        model_name("lookupvit", asked["variant"]),
        size=size,
        compressed=(5, 5) if multi else parse_grid(asked["grid"]),
        grids=GRIDS if multi else (),
        pos_grid=(size // patch, size // patch),
        **AUGREG,
    )
    config.evaluators = SHIFTS if asked["shifts"] else {}
    return smoke(config) if asked["smoke"] else config
