"""Fine-tuning on ImageNet-1K at 224 or 384 from a run of ours, such as configs/imagenet/imagenet21k.py's.

    python -m lookupjax.train --config=configs/imagenet/finetune.py:lookupvit_b16,384 \\
        --config.init.path=runs/i21k --workdir=runs/i21k_384

Argument: a model name (that of the run), resolution, "shifts", "smoke". Default lookupvit_b16,384.

Position tables are resized to the new resolution and a head for other classes starts anew. Recipe:
AugReg's fine-tuning, SGD with momentum, 20,000 steps of 512 images (8 epochs), learning rate 0.03 (0.01 and
0.003 are the other ones to try), no weight decay, no mixing. Topology: v4:2x2x2 (8 chips) or 8 H100. Cost:
LookupViT-B/16 5x5 at 384 (19.7 GMACs) takes 1.2e18 FLOP, under half an hour on 8 v4 chips at 40 % of their
peak; ViT-B/16 at 384 (55.4) three times that. Expected: ViT-B/16 from ImageNet-21K 85.49 % at 384 (the AugReg
release) and 84.0 % at 224; of LookupViT no table could be had.
"""

from ml_collections import ConfigDict

from lookupjax.models import model_options
from lookupjax.recipes import FINETUNE, SHIFTS, imagenet, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, size=(r"\d+", "384"), shifts=("shifts", ""), model=(r"\w+_\w+", "lookupvit_b16"))
    size, model = int(asked["size"]), asked["model"]
    known, changes = model_options(model), {}
    if "pos_grid" in known:
        changes["pos_grid"] = tuple(size // side for side in known["patch"])
    if model.startswith("vit_"):
        changes["head"] = "gap"
    config = imagenet(model, size=size, **FINETUNE | changes)
    config.evaluators = SHIFTS if asked["shifts"] else {}
    return smoke(config) if asked["smoke"] else config
