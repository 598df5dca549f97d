"""LookupViT's point on a laptop: one model, several compute budgets, next to a ViT of the same size.

    python -m lookupjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Data: the 1,797 real handwritten digits of scikit-learn (8x8 pixels, 64 lookup tokens). Every step draws
one of the compressed grids 2x2, 3x3, 4x4. Cost: two minutes on two CPU cores. Expected: test accuracy
of at least 0.97 at 4x4. The report with tables and pictures lies in runs/quickstart/report.
"""

from ml_collections import ConfigDict

SIZE = dict(patch=(1, 1), pos_grid=(8, 8), dim=64, depth=4, num_heads=4, drop_path=0.1)


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(name="lookupvit_mu4", compressed=(4, 4), **SIZE),
            grids=((2, 2), (3, 3), (4, 4)),
            baselines=dict(vit=dict(model=dict(name="vit_mu4", head="gap", **SIZE), grids=())),
            task=dict(label_smoothing=0.1),
            data=dict(
                name="digits",
                channels=1,
                cache=True,
                train_transforms=(
                    dict(name="random_affine", degrees=12.0, translate=0.1, scale=(0.9, 1.1)),
                    dict(name="normalize"),
                ),
                eval_transforms=(dict(name="normalize"),),
            ),
            batch_size=128,
            eval_batch_size=360,
            steps=1200,
            optimizer=dict(learning_rate=3e-3, weight_decay=0.05),
            schedule=dict(warmup_steps=100),
            eval_every=200,
            checkpoint=dict(every=400),
            report=True,
        )
    )
