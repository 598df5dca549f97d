"""LookupViT on Kinetics-400 (arXiv 2407.12753): joint over space and time, or per frame.

    python -m lookupjax.train --config=configs/kinetics/lookupvit.py:B/16x2,8x5x5 \\
        --workdir=runs/lookup_k400 --config.init.path=runs/lookupvit_b16_5x5

Argument: variant (S/16x2, B/16x2, L/16x2), compressed grid (time x height x width: 16x3x3, 8x5x5, 16x5x5,
16x7x7, ...; height x width, such as 5x5: a LookupViT per frame below ViViT's temporal transformer, ours),
"smoke" (a minute, anywhere). Default B/16x2,8x5x5.

Recipe: that of configs/kinetics/vivit.py, which this is compared with; none was published for LookupViT.
Starts from an image LookupViT (`init.path`: a run of ours, such as configs/imagenet/lookupvit.py's) or from a
ViT's file, then with --config.init.exclude="('/cross/','lookup_mlp','lookup_norm','final_norm_l')". Topology:
v4:2x2x4 (16 chips) or 8 H100. Cost: B/16x2 at 8x5x5 (131.8 GMACs, 3.4 times fewer
than ViViT's 451.3) takes 5.1e18 FLOP, under an hour on 16 v4 chips at 40 % of their peak, which only a
machine that decodes 2,200 clips per second can feed. Expected: the paper's tables could not be had; the
criterion is within half a point of the joint ViViT of configs/kinetics/vivit.py (79.9 % with 4x3 views).
"""

from ml_collections import ConfigDict

from lookupjax.grids import parse_grid
from lookupjax.recipes import model_name, parse
from lookupjax.video_recipes import KINETICS, small, video


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=(r"(?i)[sbl]/16x2", "B/16x2"), grid=(r"\d+x\d+(x\d+)?", "8x5x5"))
    grid = parse_grid(asked["grid"])
    joint = len(grid) == 3
    name = model_name("lookupvit_video" if joint else "lookup_vivit", asked["variant"])
    config = video(name, compressed=grid, **KINETICS)
    if not joint:
        config.init.module = "frames"
    return small(config) if asked["smoke"] else config
