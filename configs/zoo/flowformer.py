"""Flowformer on ImageNet-1K: `configs/zoo/flowformer.py`.

Argument: variant (cv), "smoke" (a minute, anywhere).

Recipe of arXiv 2202.06258 (thuml/Flowformer's vision folder): AdamW 5e-4 for each 512 images, weight decay
0.05, 300 epochs, warm-up 5, clip 1, drop path 0.2, RandAugment, mixup, cutmix, no erasing. There 6 GPUs
with 128 images each; here 8 devices and batch 1024 at the same rate per image. Expected top-1: 80.6 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("cv", "cv"))
    config = imagenet(
        f"flowformer_{asked['variant']}",
        final_rate=0.02,
        clip_norm=1.0,
        erasing=0.0,
        drop_path=0.2,
    )
    return smoke(config) if asked["smoke"] else config
