"""ViViT on Something-Something v2 (arXiv 2103.15691) with scenic's recipe of the factorised encoder.

    python -m lookupjax.train --config=configs/something_something/vivit.py:L/16x2,fe \\
        --workdir=runs/vivit_ssv2 --config.init.path=runs/vivit_l16x2_fe

Argument: variant (B/16x2, L/16x2), form (joint, fe, fsa, fdp, see configs/kinetics/vivit.py), "consecutive"
(scenic's 32 frames in a row instead of 32 segments of the video), "smoke". Default L/16x2,fe.

Starts from the Kinetics run of the same model, or from an image model with --config.init.exclude as there.
Recipe: crops of 256 pixels, RandAugment(2, 20), MixUp 0.3, label smoothing 0.3, stochastic depth 0.3,
learning rate 0.4, 35 epochs of 64 clips; never flipped, because classes tell left from right. Topology:
v4:2x2x4 (16 chips) or 8 H100. Cost: L fe at 256 (1,305 GMACs) takes 4.6e19 FLOP, 7
hours on 16 v4 chips at 40 % of their peak, fed with 230 clips per second. Expected: no published figure could
be confirmed here.
"""

from ml_collections import ConfigDict

from lookupjax.models.vivit import SHORT, VARIANTS
from lookupjax.recipes import model_name, parse
from lookupjax.video_recipes import SOMETHING, small, video


def get_config(argument: str = "") -> ConfigDict:
    forms = [short.strip("_") for short in SHORT if short]
    asked = parse(
        argument,
        variant=(r"(?i)[blh]/16x2", "L/16x2"),
        form=("|".join(["joint", *forms]), "fe"),
        sampling=("consecutive", ""),
    )
    form = asked["form"]
    name = model_name("vivit", asked["variant"]) + ("" if form == "joint" else f"_{form}")
    frames = dict(sampling="clips", stride=1) if asked["sampling"] else {}
    config = video(name, pos_grid=(16, 16, 16), **SOMETHING | frames)
    shape = VARIANTS[name.removeprefix("vivit_")]
    return small(config, form=shape["form"], head=shape["head"]) if asked["smoke"] else config
