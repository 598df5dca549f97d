"""COCO captions with a frozen LookupViT: the decoder sees its compressed tokens alone (arXiv 2407.12753).

    python -m lookupjax.data.prepare coco_captions --source=COCO
    python -m lookupjax.train --config=configs/coco_captions/lookupvit.py:B/16,5x5 --workdir=runs/captions \\
        --config.init.path=runs/lookupvit_b16_5x5
    python -m lookupjax.predict --workdir=runs/captions --caption PHOTO.jpg

Argument: variant (S/16, B/16, L/16), compressed grid, resolution, form of the decoder ("cross", "prefix"),
"tokens" (computes the encoder's tokens of the images once, without augmentation, and trains on them), "smoke"
(a minute, anywhere). Default B/16,5x5,224,cross. init.path is a run of configs/imagenet/lookupvit.py or
finetune.py; without it the encoder is random.

Recipe: see lookupjax/caption_recipes.py. Which decoder the paper used is not stated; ours has 6 blocks as
wide as the encoder. Topology: one host with 8 devices. Cost: 5 epochs, 2,213 steps of 256 images; with
"tokens" the encoder runs once over 113,287 images and the file of 5x5 tokens takes 4.4 GB. Expected: the
paper's figures could not be had. GIT reports CIDEr 131.4 (base) and 138.5 (large) on Karpathy's test split
after training all of it; a frozen encoder stays below. Not run at full size here.
"""

from ml_collections import ConfigDict

from lookupjax.caption_recipes import captioning, smoke
from lookupjax.grids import parse_grid
from lookupjax.recipes import model_name, parse


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        variant=(r"(?i)[sbl]/\d+", "B/16"),
        grid=(r"\d+x\d+", "5x5"),
        size=(r"\d+", "224"),
        form=("cross|prefix", "cross"),
        tokens=("tokens", ""),
    )
    config = captioning(
        model_name("lookupvit", asked["variant"]),
        dict(compressed=parse_grid(asked["grid"])),
        size=int(asked["size"]),
        form=asked["form"],
        cache_tokens=bool(asked["tokens"]),
    )
    return smoke(config) if asked["smoke"] else config
