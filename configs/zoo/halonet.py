"""HaloNet on ImageNet-1K: `configs/zoo/halonet.py:h1`.

    python -m lookupjax.train --config=configs/zoo/halonet.py:50ts --workdir=runs/halonet

Argument: variant (h0 ... h7, h1_timm, 26t, 33ts, 50ts, eca_next26ts, regnetz_b, halo2bot50ts), "smoke" (a
minute, anywhere). Default h1. Images have the variant's own size (256 pixels for most).

Recipe of arXiv 2103.12731 as far as it is known, all unconfirmed: SGD with momentum, batch 4096, long cosine,
RandAugment, stochastic depth, smoothing 0.1, no mixing. Ours: 0.1 per 256 images, 350 epochs, warm-up 5,
weight decay 2e-5. (timm's weights of the hybrids come from LAMB and binary cross-entropy instead.) Topology:
v4:2x4x4 (32 chips). Expected top-1 (paper): h0 77.9, h1 79.9, h2 80.4, h3 81.9, h4
83.3, h5 84.0, h6 84.4, h7 84.9 %; timm's recipe: 26t 79.1, 33ts 81.0, 50ts 81.6, eca_next26ts 79.5, regnetz_b
81.1, halo2bot50ts 82.1 %.
"""

from ml_collections import ConfigDict

from lookupjax.models import native_size
from lookupjax.models.halonet import PUBLISHED
from lookupjax.recipes import imagenet, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(PUBLISHED), "h1"))
    name = f"halonet_{asked['variant']}"
    config = imagenet(
        name,
        size=native_size(name),
        epochs=350,
        batch_size=4096,
        optimizer="sgd",
        learning_rate=1.6,
        weight_decay=2e-5,
        final_rate=0.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        drop_path=0.1,
        crop_pct=0.95,
    )
    return smoke(config) if asked["smoke"] else config
