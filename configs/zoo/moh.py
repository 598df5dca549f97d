"""MoH-ViT on ImageNet-1K: `configs/zoo/moh.py:s_75`.

Argument: variant (s_80, s_75, b_75, b_50), "smoke" (a minute, anywhere). Default s_75.

Recipe of arXiv 2410.11842 (SkyworkAI/MoH): AdamW 1e-3 at batch 1024, weight decay 0.05, 300 epochs, warm-up
5, clip 1, drop path 0.45 (b: 0.6), RandAugment, mixup, cutmix, erasing, repeated augmentation; the balance
loss has weight 0.01. Position biases and query embeddings do not decay. Meant for 8 devices of 80 GB.
Expected top-1, the README's: s_80 84.7, s_75 84.6, b_75 84.9, b_50 84.7 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("(s_80|s_75|b_75|b_50)", "s_75"))
    config = imagenet(
        f"moh_vit_{asked['variant']}",
        clip_norm=1.0,
        repeats=3,
        drop_path=0.45 if asked["variant"].startswith("s") else 0.6,
    )
    config.optimizer.decay = (("^(?!.*position/).*kernel$", 1.0), ("learned_tokens$", 1.0))
    return smoke(config) if asked["smoke"] else config
