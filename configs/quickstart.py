"""LookupViT's point on a laptop: one model, several compute budgets, next to a ViT of the same size.

    python -m lookupjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Data: the 1,797 real handwritten digits of scikit-learn, their 8x8 pixels enlarged to 32x32: one lookup
token per original pixel, 64 in all. Every step draws one of the compressed grids 2x2, 3x3, 4x4. Cost:
two to three minutes on two CPU cores. Expected: test accuracy
of at least 0.97 at 4x4. The report with tables and pictures lies in runs/quickstart/report.
"""

from ml_collections import ConfigDict

# Positions start at the scale of the patches: with the usual 0.02 a tiny model needs much longer.
SIZE = dict(patch=(4, 4), pos_grid=(8, 8), dim=48, depth=2, num_heads=4, pos_init=0.5)
ENLARGE = dict(name="resize", size=(32, 32))
NORMALIZE = dict(name="normalize")


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(name="lookupvit_mu", compressed=(4, 4), **SIZE),
            grids=((2, 2), (3, 3), (4, 4)),
            baselines=dict(vit=dict(model=dict(name="vit_mu", head="gap", **SIZE), grids=())),
            data=dict(
                name="digits",
                channels=1,
                cache=True,
                train_transforms=(
                    ENLARGE,
                    dict(name="random_affine", degrees=10.0, translate=0.08, scale=(0.9, 1.1)),
                    NORMALIZE,
                ),
                eval_transforms=(ENLARGE, NORMALIZE),
            ),
            batch_size=32,
            eval_batch_size=360,
            steps=1500,
            optimizer=dict(learning_rate=3e-3, weight_decay=0.01),
            schedule=dict(warmup_steps=100),
            eval_every=250,
            checkpoint=dict(every=500),
            report=True,
        )
    )
