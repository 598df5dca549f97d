"""DependencyViT on ImageNet-1K with DeiT's settings (arXiv 2304.03282; recipe not confirmed, no public code).

    python -m lookupjax.train --config=configs/zoo/dependencyvit.py:lite_s --workdir=runs/dependencyvit_lite_s

Argument: variant (t, s, lite_t, lite_s, t_pos), "smoke" (a minute, anywhere). Default t.

Topology: v4:2x2x2 (8 chips) or 8 GPUs, batch 1024. Expected: 75.4 % (t), 82.1 % (s),
73.7 % (lite_t), 80.6 % (lite_s) by the paper; the reference's author reached 72 to 73.x % with t.
`--config.model.layer_scale=None` trains without the reference's layer scale of 1e-6, which starts slowly.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import DEIT, HALF, imagenet, parse, smoke


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=(r"(lite_)?[ts](_pos)?|mu", "t"))
    name = f"dependencyvit_{asked['variant']}"
    config = imagenet(name, drop_path=0.1, mean=HALF, std=HALF, crop_pct=0.9, **DEIT)
    return smoke(config) if asked["smoke"] else config
