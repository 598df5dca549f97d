"""Agent-DeiT, Agent-PVT and Agent-Swin on ImageNet-1K: `configs/zoo/agent_attention.py:swin_t`.

Argument: host and variant (deit_t, deit_s, deit_s_448, deit_b, pvt_t, pvt_s, pvt_m, pvt_m_256, pvt_l, swin_t,
swin_s, swin_s_288, swin_b, swin_b_384), "smoke" (a minute, anywhere). Default deit_t.

Recipe of arXiv 2312.08874 (LeapLabTHU/Agent-Attention's yaml files): AdamW 5e-4 for each 512 images, 300
epochs, warm-up 20 (PVT 5), RandAugment, mixup, cutmix, erasing; the tables of agent biases decay, as there.
swin_b_384 is its fine-tuning of swin_b, which `--config.init.path` must name: 30 epochs at 2e-5 for each 512.
Meant for 8 devices of 40 GB, batch 1024. Expected top-1, the README's, in the order above: deit 74.9, 80.5,
83.1, 82.0; pvt 78.4, 82.2, 83.4, 83.8, 83.7; swin 82.6, 83.7, 84.1, 84.0, 84.9 %.
"""

from ml_collections import ConfigDict

from lookupjax.models import native_size
from lookupjax.recipes import imagenet, parse, smoke

TABLES = (("_bias/(coarse|rows|columns|prefix)$", 1.0),)
# drop path, clipping norm
VARIANTS = {
    "deit_t": (0.0, 5.0),
    "deit_s": (0.1, 5.0),
    "deit_s_448": (0.1, 5.0),
    "deit_b": (0.3, 5.0),
    "pvt_t": (0.1, 0.0),
    "pvt_s": (0.1, 0.0),
    "pvt_m": (0.3, 1.0),
    "pvt_m_256": (0.3, 1.0),
    "pvt_l": (0.3, 1.0),
    "swin_t": (0.2, 5.0),
    "swin_s": (0.3, 5.0),
    "swin_s_288": (0.3, 5.0),
    "swin_b": (0.5, 5.0),
    "swin_b_384": (0.5, 5.0),
}


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join(VARIANTS), "deit_t"))
    name = f"agent_{asked['variant']}"
    drop_path, clip = VARIANTS[asked["variant"]]
    pvt, tuned = "pvt" in name, name.endswith("_384")
    config = imagenet(
        name,
        size=native_size(name),
        epochs=30 if tuned else 300,
        learning_rate=4e-5 if tuned else 1e-3,
        weight_decay=1e-8 if tuned else 0.05,
        warmup_epochs=5 if pvt or tuned else 20,
        final_rate=0.02 if pvt else 0.01,
        clip_norm=clip,
        drop_path=drop_path,
    )
    config.optimizer.decay = (("kernel$", 1.0), *TABLES, *((("pos$", 1.0),) if pvt else ()))
    return smoke(config) if asked["smoke"] else config
