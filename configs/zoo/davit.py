"""DaViT on ImageNet-1K: `configs/zoo/davit.py:t`.

    python -m lookupjax.train --config=configs/zoo/davit.py:t --workdir=runs/davit_t

Argument: variant (t, s, b), "smoke" (a minute, anywhere). Default t.

Recipe of arXiv 2204.03645 (dingmyu/davit's script): AdamW 1e-3 at batch 1024 (2e-3 at 2048), weight decay
0.05, clipping at 1, 300 epochs, warm-up 5, RandAugment, colour jitter 0.4, erasing, mixup, cutmix, smoothing;
no EMA, no repeats. Drop path of s and b (0.2, 0.4) is unconfirmed. Left out: 10 cool-down epochs.
Meant for 8 GPUs of 32 GB. Expected top-1 at 224 pixels: t 82.8, s 84.2, b 84.6 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke

DROP_PATH = {"t": 0.1, "s": 0.2, "b": 0.4}


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(DROP_PATH), "t"))
    config = imagenet(
        f"davit_{asked['variant']}",
        clip_norm=1.0,
        colour_jitter=0.4,
        drop_path=DROP_PATH[asked["variant"]],
        crop_pct=0.9,
    )
    return smoke(config) if asked["smoke"] else config
