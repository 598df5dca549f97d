"""Your own images: a folder per class, or a CSV of paths and labels. No preparation.

    python -m lookupjax.train --config=configs/finetune.py --config.data.dir=FOLDER \\
        --config.init.path=B_16.npz --workdir=runs/mine                      # from weights
    python -m lookupjax.train --config=configs/finetune.py:vit_t16,scratch --config.data.dir=FOLDER \\
        --workdir=runs/scratch                                               # from nothing

Argument: a model name, resolution, "scratch", "smoke". Default vit_b16 at 224 pixels. `init.path` is a file
of published weights (docs/weights.md) or of `lookupjax.export --format=safetensors`, or a work directory.

FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg of which a tenth is set aside, or a
.csv with the columns path, label and perhaps split: docs/own_data.md. From weights: AdamW at 1e-4 with
layer-wise decay 0.75, mild augmentation; from nothing: 1e-3 and more of it. 2,000 steps of 32 images, which
`--config.steps` should make some dozens of epochs. One GPU, or a CPU for the small models.
"""

from ml_collections import ConfigDict

from lookupjax.models import model_options, native_size
from lookupjax.recipes import HALF, IMAGENET_MEAN, IMAGENET_STD, parse, smoke, views

STEPS = 2000


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, size=(r"\d+", ""), start=("scratch", ""), model=(r"\w+_\w+", "vit_b16"))
    model, scratch = asked["model"], bool(asked["start"])
    size = (int(asked["size"]),) * 2 if asked["size"] else native_size(model)[-2:]
    known, options = model_options(model), {}
    if "pos_grid" in known and asked["size"]:
        options["pos_grid"] = tuple(n // side for n, side in zip(size, known["patch"]))
    google = model.startswith(("vit_", "lookupvit_"))
    pixels = dict(mean=HALF, std=HALF) if google else dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    augment = dict(
        crop_area=(0.2, 1.0) if scratch else (0.5, 1.0),
        rand_augment=dict(n=2, m=9.0 if scratch else 5.0, operations="timm"),
        erasing=0.25 if scratch else 0.0,
        crop_pct=1.0,
    )
    config = ConfigDict(
        dict(
            model=dict(name=model, **options),
            task=dict(name="classification", label_smoothing=0.1),
            data=dict(
                name="folder",
                train_split="train",
                eval_split="validation",
                **views(size, **augment, **pixels),
            ),
            batch_size=32,
            eval_batch_size=64,
            steps=STEPS,
            optimizer=dict(
                learning_rate=1e-3 if scratch else 1e-4,
                weight_decay=0.05,
                layer_decay=1.0 if scratch else 0.75,
            ),
            schedule=dict(warmup_steps=STEPS // 20),
            mixing=dict(mixup=0.2 if scratch else 0.0),
            log_every=20,
            eval_every=200,
            checkpoint=dict(every=500, best="eval/accuracy"),
        )
    )
    return smoke(config) if asked["smoke"] else config
