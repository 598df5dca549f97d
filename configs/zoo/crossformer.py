"""CrossFormer and CrossFormer++ on ImageNet-1K: `configs/zoo/crossformer.py:s`.

    python -m lookupjax.train --config=configs/zoo/crossformer.py:pp_s --workdir=runs/crossformer

Argument: variant (t, s, b, l, pp_s, pp_b, pp_l, pp_h), "smoke" (a minute, anywhere). Default s.

Recipe of arXiv 2108.00154 (cheerss/CrossFormer): AdamW 5e-4 per 512 images (1e-3 at 1024), weight decay 0.05,
clipping at 5, 300 epochs, 20 of warm-up, RandAugment, colour jitter 0.4, erasing, mixup, cutmix, smoothing;
no EMA, no repeats. Meant for 8 GPUs of 32 GB.
Expected top-1 at 224 pixels: t 81.5, s 82.5, b 83.4, l 84.0, pp_s 83.2, pp_b 84.2, pp_l 84.7, pp_h 84.9 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke

DROP_PATH = {"t": 0.1, "s": 0.2, "b": 0.3, "l": 0.5, "pp_s": 0.2, "pp_b": 0.3, "pp_l": 0.5, "pp_h": 0.5}


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(DROP_PATH), "s"))
    config = imagenet(
        f"crossformer_{asked['variant']}",
        warmup_epochs=20,
        clip_norm=5.0,
        colour_jitter=0.4,
        drop_path=DROP_PATH[asked["variant"]],
    )
    return smoke(config) if asked["smoke"] else config
