"""OverLoCK on ImageNet-1K: `configs/zoo/overlock.py:t`.

Argument: variant (xt, t, s, b), "smoke" (a minute, anywhere). Default t.

Recipe of arXiv 2502.20087 (LMMMEng/OverLoCK's scripts): AdamW 2e-3 at batch 2048, 300 epochs, warm-up 5,
RandAugment, colour jitter 0.4, mixup, cutmix, erasing, EMA 0.9999, loss = CE + 0.4 CE of the auxiliary head.
Meant for 8 devices of 80 GB; mixed precision may become unstable (then dtype=float32, as its README says).
Expected top-1 at 224 pixels: xt 82.7, t 84.2, s 84.8, b 85.1 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke

VARIANTS = {
    "xt": (0.1, 0.925),
    "t": (0.15, 0.95),
    "s": (0.4, 0.95),
    "b": (0.5, 0.975),
}  # drop path, test crop


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(VARIANTS), "t"))
    drop_path, crop_pct = VARIANTS[asked["variant"]]
    config = imagenet(
        f"overlock_{asked['variant']}",
        batch_size=2048,
        learning_rate=2e-3,
        final_rate=1e-5 / 2e-3,
        clip_norm=5.0,
        colour_jitter=0.4,
        ema=0.9999,
        drop_path=drop_path,
        crop_pct=crop_pct,
    )
    return smoke(config) if asked["smoke"] else config
