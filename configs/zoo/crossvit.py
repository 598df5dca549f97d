"""CrossViT: ImageNet-1K training (arXiv 2103.14899), and the Brain-Score fine-tuning (Berrios & Deza 2022).

    python -m lookupjax.train --config=configs/zoo/crossvit.py:18_dagger --workdir=runs/crossvit
    python -m lookupjax.train --config=configs/zoo/crossvit.py:brainscore --config.init.path=FILE --workdir=D

Argument: variant (ti, s, b, 9, 15, 18, 9_dagger, ..., 18_dagger_384), "brainscore" (rotations and adversarial
training), "rotation" or "adversarial" (only that), "smoke" (a minute, anywhere). Default 18_dagger; the
fine-tuning's is 18_dagger_384.

ImageNet training: DeiT's recipe, batch 4096, 30 epochs of warm-up; class tokens and positions are decayed, as
in the official runs. Topology: v4:2x2x4 (16 chips) or 32 GPUs. Expected: 73.4 (ti),
81.0 (s), 82.2 (b), 73.9 (9), 81.5 (15), 82.5 (18), 77.1, 82.3, 82.8 % (dagger).

Fine-tuning: 6 epochs of batch 64 from the pretrained 18_dagger_384 (timm's crossvit_18_dagger_408), 224-pixel
crops that the branches enlarge; noise of 2/255 after one step of 2.5/255 from a random start. Topology: one
GPU. Expected ImageNet accuracy and Brain-Score: 79.22 %, 0.458 (rotation); 64.60 %, 0.462 (adversarial);
73.53 %, 0.488 (both), against 83.05 %, 0.442 before.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import DEIT, IMAGENET_MEAN, IMAGENET_STD, imagenet, parse, smoke

PEAK = 2e-4
RATES = (8e-5, 2e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5, 6.25e-6)  # at the ends of epochs 0 to 6, lines between
NORMALIZE = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        variant=(r"ti|s|b|(9|15|18)(_dagger(_384)?)?|mu", ""),
        tuning=("brainscore|rotation|adversarial", ""),
    )
    if asked["tuning"]:
        config = brain_score(asked["variant"] or "18_dagger_384", asked["tuning"])
    else:
        config = pretraining(asked["variant"] or "18_dagger")
    return smoke(config) if asked["smoke"] else config


def pretraining(variant: str) -> ConfigDict:
    size = 408 if variant.endswith("384") else 240
    config = imagenet(
        f"crossvit_{variant}",
        size=size,
        batch_size=4096,
        learning_rate=4e-3,
        warmup_epochs=30,
        final_rate=1e-5 / 4e-3,
        colour_jitter=0.4,
        drop_path=0.1,
        crop_pct=1.0 if size == 408 else 0.875,
        **DEIT,
    )
    config.optimizer.decay = (("kernel$", 1.0), ("^(cls|pos)/", 1.0))
    return config


def brain_score(variant: str, tuning: str) -> ConfigDict:
    config = imagenet(
        f"crossvit_{variant}",
        epochs=6,
        batch_size=64,
        optimizer="adam",
        learning_rate=PEAK,
        weight_decay=1e-4,
        warmup_epochs=0,
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        rand_augment=None,
        erasing=0.0,
    )
    config.optimizer.decay = ((".", 1.0),)
    factors = tuple((epoch / 6, rate / PEAK) for epoch, rate in enumerate(RATES))
    config.schedule = dict(name="knots", knots=factors)
    if tuning != "rotation":
        config.task = dict(name="adversarial", eps=2 / 255, step=2.5 / 255, **NORMALIZE)
    if tuning != "adversarial":
        first = (dict(name="resize_short_side", size=256), dict(name="random_quarter_turn"))
        config.data.train_transforms = (*first, *config.data.train_transforms)
    config.evaluators = dict(robust=dict(type="robust", eps=(0.0, 1 / 255, 2 / 255), steps=10))
    return config
