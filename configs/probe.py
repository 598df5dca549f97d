"""A trained pooling on a frozen backbone, Efficient Probing by default: `configs/probe.py:ep,vit_b16`.

    python -m lookupjax.train --config=configs/probe.py:ep,vit_b16 --workdir=runs/probe \\
        --config.init.path=B_16.npz                     published weights, or a work directory of ours

Argument: a pooling (ep, linear probing's gap or token, siglip, jepa, ..., see lookupjax/attention/pooling), a
backbone, "smoke". Options of the backbone: --config.model.backbone_options="{'head': 'gap'}". Without
init.path the backbone is random, which measures nothing.

Recipe of arXiv 2506.10178: LARS, learning rate 0.1 per 256 images, batch 4096, 90 epochs, warm-up 10, cosine
to 0, no weight decay, random crops and flips only; the paper reports the best epoch. Meant for 8 devices.
Expected top-1 with EP: MAE ViT-B 75.5, DINOv2 ViT-B 84.0, DINOv3 ViT-B 83.9, BEiTv2 ViT-B 81.4 %.
"""

from ml_collections import ConfigDict

from lookupjax.attention.pooling import POOLINGS
from lookupjax.recipes import imagenet, parse, smoke

SMALL = {"ep": dict(num_queries=4), "esimpool": dict(num_heads=4), "clip": dict(feat_size=8)}


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, pooling=("|".join(POOLINGS), "ep"), backbone=(r"\w+_\w+", "vit_b16"))
    pooling = asked["pooling"]
    config = imagenet(
        f"probe_{pooling}",
        backbone=asked["backbone"],
        batch_size=4096,
        epochs=90,
        optimizer="lars",
        learning_rate=0.1 * 4096 / 256,
        weight_decay=0.0,
        warmup_epochs=10,
        final_rate=0.0,
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        rand_augment=None,
        erasing=0.0,
    )
    config.frozen = ("^backbone/",)
    config.init = ConfigDict(dict(path="", module="backbone"))
    config.checkpoint.best = "eval/accuracy"
    if asked["smoke"]:
        options = SMALL.get(pooling, {})
        return smoke(config, pooling=pooling, pooling_options=options, prefix=pooling == "token")
    return config
