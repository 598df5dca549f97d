"""BiFormer on ImageNet-1K: `configs/zoo/biformer.py:s`.

    python -m lookupjax.train --config=configs/zoo/biformer.py:s --workdir=runs/biformer_s

Argument: variant (t, s, b, stl, stl_nchw), "smoke" (a minute, anywhere). Default s.

Recipe of arXiv 2303.08810 (rayleizhu/BiFormer): AdamW 5e-4 per 512 images (1e-3 at 1024), weight decay 0.05,
300 epochs, warm-up 5, no clipping, RandAugment, colour jitter 0.4, erasing, mixup, cutmix, smoothing, three
repeats. The reported accuracy is of the raw weights: no EMA. Drop path of t, b and stl is unconfirmed. Left
out: 10 cool-down epochs. Meant for 8 GPUs of 32 GB.
Expected top-1 at 224 pixels: t 81.4, s 83.8, b 84.3, stl and stl_nchw 82.7 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke

DROP_PATH = {"t": 0.1, "s": 0.15, "b": 0.4, "stl": 0.1, "stl_nchw": 0.1}


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(DROP_PATH), "s"))
    config = imagenet(
        f"biformer_{asked['variant']}",
        colour_jitter=0.4,
        repeats=3,
        drop_path=DROP_PATH[asked["variant"]],
    )
    return smoke(config) if asked["smoke"] else config
