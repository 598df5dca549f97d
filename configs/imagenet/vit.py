"""ViT on ImageNet-1K with the AugReg recipe (arXiv 2106.10270): the baseline of LookupViT's comparison.

    python -m lookupjax.train --config=configs/imagenet/vit.py:B/16 --workdir=runs/vit_b16

Argument: variant (Ti/16, S/16, S/32, B/16, ...), resolution, "shifts" (also evaluates ImageNet-V2, -Sketch,
-A, -R, -O and ReaL), "smoke" (a minute, anywhere). Default B/16,224.

The recipe is that of configs/imagenet/lookupvit.py to the letter; tokens are averaged, as LookupViT's are
(`--config.model.head=token` for a class token). Topology: v4:2x2x4 (16 chips) or 8
H100, batch 4096. Cost: B/16 takes 4.0e19 FLOP, about 6 hours on 16 v4 chips at 40 % of their peak. Expected
for B/16 at 224: 79.7 % top-1 (scenic's ViT-AugReg-B/16 from scratch, 300 epochs).
"""

from ml_collections import ConfigDict

from lookupjax.recipes import AUGREG, SHIFTS, imagenet, model_name, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        variant=(r"(?i)(ti?|s|b|l|h)/\d+|mu", "B/16"),
        size=(r"\d+", "224"),
        shifts=("shifts", ""),
    )
    size, patch = int(asked["size"]), int(asked["variant"].partition("/")[2] or 4)
    name = model_name("vit", asked["variant"].lower().replace("ti/", "t/"))
    config = imagenet(name, size=size, head="gap", pos_grid=(size // patch, size // patch), **AUGREG)
    config.evaluators = SHIFTS if asked["shifts"] else {}
    return smoke(config) if asked["smoke"] else config
