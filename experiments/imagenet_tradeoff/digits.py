"""The comparison on real handwritten digits: `experiments/imagenet_tradeoff/digits.py:3x3`.

The argument is a compressed grid (2x2, 3x3, 4x4, 6x6), "multi" (every step draws one of them) or "vit".
The 1,797 digits of scikit-learn, 8x8 pixels enlarged to 32x32, one token per original pixel: 64 lookup
tokens, as 196 are at 224. All runs have the same width, depth, data, steps and optimizer.

Evaluated: every head, calibration, and four corruptions of ImageNet-C at severities 1, 3 and 5 (defined
for 224 pixels: harder here). Cost: about a minute a run on two CPU cores.
"""

from ml_collections import ConfigDict

from lookupjax.errors import UserError
from lookupjax.grids import parse_grid

GRIDS = ((2, 2), (3, 3), (4, 4), (6, 6))
SIZE = dict(patch=(4, 4), pos_grid=(8, 8), dim=48, depth=2, num_heads=4, pos_init=0.5)
ENLARGE, NORMALIZE = dict(name="resize", size=(32, 32)), dict(name="normalize")
SHAKE = dict(name="random_affine", degrees=10.0, translate=0.08, scale=(0.9, 1.1))
CORRUPTIONS = ("gaussian_noise", "impulse_noise", "contrast", "pixelate")


def get_config(which: str = "3x3") -> ConfigDict:
    grids = GRIDS if which == "multi" else ()
    if which == "vit":
        model = dict(name="vit_mu", head="gap", **SIZE)
    else:
        grid = GRIDS[-1] if which == "multi" else parse_grid(which)
        if grid not in GRIDS:
            raise UserError(f"{which!r} is none of these runs; they are vit, 2x2, 3x3, 4x4, 6x6 and multi")
        model = dict(name="lookupvit_mu", compressed=grid, **SIZE)
        grids = grids or (grid,)  # so that results name the grid
    return ConfigDict(
        dict(
            model=model,
            grids=grids,
            data=dict(
                name="digits",
                channels=1,
                cache=True,
                train_transforms=(ENLARGE, SHAKE, NORMALIZE),
                eval_transforms=(ENLARGE, NORMALIZE),
            ),
            batch_size=32,
            eval_batch_size=360,
            steps=1000,
            optimizer=dict(learning_rate=3e-3, weight_decay=0.01),
            schedule=dict(warmup_steps=100),
            evaluators=dict(
                val=dict(type="classification"),
                corrupted=dict(
                    type="corruptions",
                    on_the_fly=True,
                    stored=False,
                    corruptions=CORRUPTIONS,
                    severities=(1, 3, 5),
                ),
            ),
            log_every=200,
            checkpoint=dict(every=0),
        )
    )
