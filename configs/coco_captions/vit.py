"""COCO captions with a frozen ViT: the baseline of configs/coco_captions/lookupvit.py, the same recipe.

    python -m lookupjax.train --config=configs/coco_captions/vit.py:B/16 --workdir=runs/captions_vit \\
        --config.init.path=runs/vit_b16

Argument: variant (S/16, B/16, L/16, ...), resolution, form of the decoder ("cross", "prefix"), "tokens" (see
lookupvit.py), "smoke". Default B/16,224,cross. init.path is a run of configs/imagenet/vit.py or a published
file (docs/weights.md), for one with a class token with --config.model.encoder_options.head=token.

The decoder sees all 196 patch tokens: a caption of 31 words costs it 1.6 times the multiply-accumulates that
it needs with LookupViT's 25, and the file of "tokens" takes 34 GB instead of 4.4. Topology, expectation:
as there.
"""

from ml_collections import ConfigDict

from lookupjax.caption_recipes import captioning, smoke
from lookupjax.recipes import model_name, parse


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        variant=(r"(?i)[sblh]/\d+", "B/16"),
        size=(r"\d+", "224"),
        form=("cross|prefix", "cross"),
        tokens=("tokens", ""),
    )
    config = captioning(
        model_name("vit", asked["variant"]),
        dict(head="gap"),
        size=int(asked["size"]),
        form=asked["form"],
        cache_tokens=bool(asked["tokens"]),
    )
    return smoke(config) if asked["smoke"] else config
