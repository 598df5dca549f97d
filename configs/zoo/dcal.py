"""DCAL with the paper's recipes (arXiv 2205.02151): fine-grained classes and re-identification.

    python -m lookupjax.train --config=configs/zoo/dcal.py:t16 --config.init.path=FILE \\
        --config.init.module=trunk --workdir=runs/dcal_t16
    python -m lookupjax.train --config=configs/zoo/dcal.py:b16_reid --config.data.dir=Market-1501-v15.09.15 \\
        --config.init.path=FILE --config.init.module=trunk --workdir=runs/dcal_market

Argument: variant (t16, s16, b16, b16_reid), "smoke" (a minute, anywhere). Default b16.

Start from a ViT trained on ImageNet-21K or a DeiT (`config.init`). 100 epochs of the 5,994 birds (TFDS
`caltech_birds2011`), batch 16, 448 of 550 pixels, Adam, learning rate 5e-4 / 512 x batch, cosine. Topology:
one GPU. Expected: 84.6 % with DeiT-T/16 (82.1 without DCAL), 92.0 % with the hybrid R50-ViT-B/16, which is
not here.

Re-identification (b16_reid, 256x128): 120 epochs of the 12,936 images of Market-1501, read from its official
folders (`lookupjax.data.reid`; also DukeMTMC-reID and VeRi-776, the latter at 256x256), batches of 16
identities with 4 images each, cross-entropy and batch-hard triplets on every branch, SGD, learning rate
0.008, cosine. The margin of 0.3, padding, flips and erasing are usual in the field; the paper does not state
them. Expected: mean average precision 87.5 % on Market-1501, 80.2 % on VeRi-776. "accuracy" is that of the
training images, as the test's identities are others.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import HALF, imagenet, parse, smoke

BATCH, BIRDS = 16, 5_994
PEOPLE = 12_936  # training images of Market-1501


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=(r"[tsb]16|b16_reid|mu", "b16"))
    if asked["variant"] == "b16_reid":
        config = reidentification()
        return smoke(config) if asked["smoke"] else config
    config = imagenet(
        f"dcal_{asked['variant']}",
        size=448,
        epochs=100,
        batch_size=BATCH,
        train_images=BIRDS,
        dataset="caltech_birds2011",
        eval_split="test",
        optimizer="adam",
        learning_rate=5e-4 / 512 * BATCH,
        weight_decay=0.05,
        warmup_epochs=0,
        final_rate=0.0,
        drop_path=0.1,
        learned_balance=True,
    )
    whole, normalize = dict(name="resize", size=(550, 550)), config.data.eval_transforms[-1]
    crop, flip = dict(name="random_crop", size=(448, 448)), dict(name="random_flip")
    centre = dict(name="centre_crop", size=(448, 448), crop_pct=None)
    config.data.train_transforms = (whole, crop, flip, normalize)
    config.data.eval_transforms = (whole, centre, normalize)
    config.mixing = dict(mixup=0.0, cutmix=0.0)
    config.task = dict(name="dual_cross_attention")
    return smoke(config) if asked["smoke"] else config


def reidentification() -> ConfigDict:
    size = (256, 128)
    config = imagenet(
        "dcal_b16_reid",
        size=size,
        epochs=120,
        batch_size=64,
        train_images=PEOPLE,
        dataset="reid",
        eval_split="train",
        optimizer="sgd",
        learning_rate=0.008,
        weight_decay=1e-4,
        warmup_epochs=0,
        final_rate=0.0,
        label_smoothing=0.0,
        drop_path=0.1,
        mean=HALF,
        std=HALF,
        learned_balance=True,
    )
    whole, normalize = dict(name="resize", size=size), config.data.eval_transforms[-1]
    crop, flip = dict(name="random_crop", size=size, padding=10), dict(name="random_flip")
    config.data.train_transforms = (
        whole,
        flip,
        crop,
        normalize,
        dict(name="random_erasing", probability=0.5),
    )
    config.data.eval_transforms = (whole, normalize)
    config.data.per_class = 4
    config.mixing = dict(mixup=0.0, cutmix=0.0)
    config.task = dict(name="dual_cross_attention", margin=0.3)
    config.eval_every = 0
    config.evaluators = dict(market=dict(type="retrieval", query="query", gallery="gallery", camera="camera"))
    return config
