"""MEDUSA on chest X-rays (arXiv 2110.06063; recipe not confirmed, no public code), or on a toy.

    python -m lookupjax.train --config=configs/zoo/medusa.py --config.data.name=covidx --workdir=runs/medusa
    python -m lookupjax.train --config=configs/zoo/medusa.py:lesions --workdir=runs/lesions

Argument: variant (resnet50, plain) or "lesions" (a small plain model on the embedded toy of that name, which
`experiments/medusa_lesions` trains in all forms; its gates start open), "smoke" (a minute, anywhere). Default
resnet50.

COVIDx has to be prepared as a TFDS dataset with splits by patient. Adam, learning rate 1e-4, batch 32, 480
pixels; the paper trains the body as a U-Net that segments lungs beforehand (`config.init` with
include=("body",) takes one over), and balances the classes, which the data are expected to be. Topology: one
GPU. Expected: 98.3 % on COVIDx CXR-2 (the paper, unconfirmed).
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke

IMAGES = 15_951  # COVIDx CXR-2, training


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=(r"resnet50|plain|mu|lesions", "resnet50"))
    config = toy() if asked["variant"] == "lesions" else paper(asked["variant"])
    return smoke(config) if asked["smoke"] else config


def toy() -> ConfigDict:
    normalize = dict(name="normalize", mean=0.4, std=0.09)  # of these grey values: without, it hardly begins
    small = dict(widths=(8, 16, 32), body_width=4, body_channels=4, gate_bias=2.0)
    return ConfigDict(
        dict(
            model=dict(name="medusa_plain", **small),
            data=dict(
                name="lesions",
                channels=1,
                cache=True,
                train_transforms=(normalize,),
                eval_transforms=(normalize,),
            ),
            batch_size=32,
            eval_batch_size=500,
            steps=3000,
            optimizer=dict(learning_rate=4e-3, weight_decay=0.02),
            schedule=dict(warmup_steps=50),
            log_every=250,
            checkpoint=dict(every=0),
        )
    )


def paper(variant: str) -> ConfigDict:
    config = imagenet(
        f"medusa_{variant}",
        size=480,
        epochs=40,
        batch_size=32,
        train_images=IMAGES,
        dataset="covidx",
        eval_split="test",
        optimizer="adam",
        learning_rate=1e-4,
        weight_decay=0.0,
        warmup_epochs=0,
        label_smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
        rand_augment=None,
        erasing=0.0,
        crop_pct=1.0,
    )
    whole, normalize = dict(name="resize", size=(480, 480)), config.data.eval_transforms[-1]
    moves = dict(name="random_affine", degrees=10.0, translate=0.1, scale=(0.85, 1.15))
    intensity = dict(name="colour_jitter", brightness=0.1, contrast=0.1, saturation=0.0)
    config.data.train_transforms = (whole, moves, dict(name="random_flip"), intensity, normalize)
    config.data.eval_transforms = (whole, normalize)
    return config
