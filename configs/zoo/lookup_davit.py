"""LookupDaViT (ours): DaViT whose last two stages are LookupViT blocks, one model for several budgets.

    python -m lookupjax.train --config=configs/zoo/lookup_davit.py:digits --workdir=runs/lookup_davit
    python -m lookupjax.train --config=configs/zoo/lookup_davit.py:t --workdir=runs/lookup_davit_t

Argument: variant (t, s, b) on ImageNet-1K, or "digits": the real handwritten digits beside a plain DaViT of
the same width (two minutes on two free CPU cores); "smoke" (a minute, anywhere). Default t.

Every step draws one of the compressed grids. The ImageNet recipe is DaViT's (configs/zoo/davit.py). Nothing
is published to compare with; the criterion is DaViT's accuracy (82.8 % for t) at two thirds of its compute
(counts: docs/models.md). Meant for 8 GPUs of 32 GB.
"""

from ml_collections import ConfigDict

from lookupjax.models import native_size
from lookupjax.recipes import imagenet, parse, smoke

DROP_PATH = {"t": 0.1, "s": 0.2, "b": 0.4}
GRIDS = ((3, 3), (5, 5), (7, 7))


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=("|".join((*DROP_PATH, "digits")), "t"))
    if asked["variant"] == "digits":
        return smoke(digits()) if asked["smoke"] else digits()
    config = imagenet(
        f"lookup_davit_{asked['variant']}",
        clip_norm=1.0,
        colour_jitter=0.4,
        drop_path=DROP_PATH[asked["variant"]],
        crop_pct=0.9,
        grids=GRIDS,
    )
    return smoke(config) if asked["smoke"] else config


def digits() -> ConfigDict:
    enlarge = dict(name="resize", size=native_size("lookup_davit_mu"))
    shake = dict(name="random_affine", degrees=10.0, translate=0.08, scale=(0.9, 1.1))
    normalize = dict(name="normalize")
    return ConfigDict(
        dict(
            model=dict(name="lookup_davit_mu"),
            grids=((2, 2), (3, 3), (4, 4)),
            baselines=dict(davit=dict(model=dict(name="davit_mu"), grids=())),
            data=dict(
                name="digits",
                cache=True,
                train_transforms=(enlarge, shake, normalize),
                eval_transforms=(enlarge, normalize),
            ),
            batch_size=32,
            eval_batch_size=360,
            steps=400,
            optimizer=dict(learning_rate=2e-3, weight_decay=0.02),
            schedule=dict(warmup_steps=40),
            log_every=50,
            checkpoint=dict(every=0),
            report=True,
        )
    )
