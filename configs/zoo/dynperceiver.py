"""Dynamic Perceiver on ImageNet-1K: `configs/zoo/dynperceiver.py:reg800m_t128`.

Argument: variant (reg400m_t128, reg800m_t128, reg1_6g_t256, reg3_2g_t256, resnet50_0375_t128,
mbv3_0x75_t128), "smoke" (a minute, anywhere). Default reg800m_t128.

Recipe of arXiv 2306.11248 (LeapLabTHU/Dynamic_Perceiver): AdamW 1e-3 (ResNet: 6e-4) at batch 1024, 300 epochs
(MobileNet: 600), warm-up 20, RandAugment, mixup, cutmix, erasing, EMA 0.9999, float32; all exits trained with
the labels and from the last exit. Meant for 8 devices. Expected top-1 of the last exit: reg800m 79.86,
ResNet-50 x 0.375 77.70, MobileNet V3 x 0.75 74.59 %. The evaluator `budget` draws accuracy against MACs; the
thresholds are chosen on half of the validation images and judged on the other.
"""

from ml_collections import ConfigDict

from lookupjax.models.dynperceiver import VARIANTS
from lookupjax.recipes import imagenet, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(VARIANTS), "reg800m_t128"))
    variant = asked["variant"]
    rate = 6e-4 if variant.startswith("resnet") else 1e-3
    config = imagenet(
        f"dynperceiver_{variant}",
        epochs=600 if variant.startswith("mbv3") else 300,
        learning_rate=rate,
        warmup_epochs=20,
        final_rate=1e-6 / rate,
        ema=0.9999,
        dtype="float32",
    )
    config.task = ConfigDict(dict(name="early_exit", label_smoothing=0.1))
    config.evaluators = ConfigDict(dict(budget=dict(type="budget")))
    if asked["smoke"]:
        config = smoke(config)
        config.evaluators = ConfigDict(dict(budget=dict(type="budget")))
    return config
