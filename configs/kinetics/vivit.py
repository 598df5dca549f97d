"""ViViT on Kinetics-400 (arXiv 2103.15691), in its four forms, with scenic's recipe.

    python -m lookupjax.train --config=configs/kinetics/vivit.py:B/16x2,fe --workdir=runs/vivit_b16x2_fe \\
        --config.init.path=B_16.npz

Argument: variant (B/16x2, L/16x2), form (joint; fe: factorised encoder; fsa: factorised self-attention; fdp:
factorised dot product), "smoke" (a minute, anywhere). Default B/16x2,joint.

Starts from an ImageNet-21K ViT (`init.path`: the AugReg file, or a run of ours), whose patch kernel goes to
the middle frame of the tubelets and whose positions repeat over time. Recipe: 32 frames at stride 2, SGD with
momentum, 30 epochs of 64 clips; learning rate 0.1, of the base factorised encoder 0.05. Topology: v4:2x2x4
(16 chips) or 8 H100. Cost: joint B (451.5 GMACs) takes 1.7e19 FLOP, under three hours
on 16 v4 chips at 40 % of their peak, if 640 clips per second arrive (docs/video.md: how many cores that
takes); the factorised encoder 0.6 of that. Expected (4x3 views): joint 79.9 %, fe 78.4 %, L fe 80.3 %; single
view of the paper's ablation: 80.0, 78.8, fsa 77.4, fdp 76.3 %.
"""

from ml_collections import ConfigDict

from lookupjax.models.vivit import SHORT, VARIANTS
from lookupjax.recipes import model_name, parse
from lookupjax.video_recipes import KINETICS, small, video

FRESH = {"fe": ("^temporal/",), "fsa": ("/time_norm/",)}  # what an image model does not have


def get_config(argument: str = "") -> ConfigDict:
    forms = [short.strip("_") for short in SHORT if short]
    asked = parse(
        argument, variant=(r"(?i)[blh]/16x2", "B/16x2"), form=("|".join(["joint", *forms]), "joint")
    )
    form = asked["form"]
    name = model_name("vivit", asked["variant"]) + ("" if form == "joint" else f"_{form}")
    rate = 0.05 if name == "vivit_b16x2_fe" else KINETICS["learning_rate"]
    config = video(name, fresh=FRESH.get(form, ()), **KINETICS | dict(learning_rate=rate))
    shape = VARIANTS[name.removeprefix("vivit_")]
    return small(config, form=shape["form"], head=shape["head"]) if asked["smoke"] else config
