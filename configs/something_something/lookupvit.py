"""LookupViT on Something-Something v2 (arXiv 2407.12753): joint over space and time, or per frame.

    python -m lookupjax.train --config=configs/something_something/lookupvit.py:B/16x2,8x5x5 \\
        --workdir=runs/lookup_ssv2 --config.init.path=runs/lookup_k400

Argument: variant (S/16x2, B/16x2, L/16x2), compressed grid as in configs/kinetics/lookupvit.py,
"consecutive" (32 frames in a row instead of 32 segments of the video), "smoke". Default B/16x2,8x5x5.

Starts from the Kinetics run of the same model. Recipe: that of configs/something_something/vivit.py, which
this is compared with; none was published for LookupViT. Never flipped: classes tell left from right.
Topology: v4:2x2x4 (16 chips) or 8 H100. Cost: B/16x2 at 8x5x5 and 256 pixels (159
GMACs) takes 5.6e18 FLOP, under an hour on 16 v4 chips at 40 % of their peak, if 1,800 clips per second
arrive. Expected: the paper's tables could not be had; the criterion is within half a point of the joint
ViViT-B of the other file.
"""

from ml_collections import ConfigDict

from lookupjax.grids import parse_grid
from lookupjax.recipes import model_name, parse
from lookupjax.video_recipes import SOMETHING, small, video


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        variant=(r"(?i)[sbl]/16x2", "B/16x2"),
        grid=(r"\d+x\d+(x\d+)?", "8x5x5"),
        sampling=("consecutive", ""),
    )
    grid = parse_grid(asked["grid"])
    name = model_name("lookupvit_video" if len(grid) == 3 else "lookup_vivit", asked["variant"])
    frames = dict(sampling="clips", stride=1) if asked["sampling"] else {}
    config = video(name, compressed=grid, pos_grid=(16, 16, 16), **SOMETHING | frames)
    return small(config) if asked["smoke"] else config
