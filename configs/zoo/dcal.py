"""DCAL on CUB-200-2011 with the paper's fine-grained recipe (arXiv 2205.02151).

    python -m lookupjax.train --config=configs/zoo/dcal.py:t16 --config.init.path=FILE --workdir=runs/dcal_t16

Argument: variant (t16, s16, b16), "smoke" (a minute, anywhere). Default b16.

Start from a ViT trained on ImageNet-21K or a DeiT (`config.init`). 100 epochs of the 5,994 birds (TFDS
`caltech_birds2011`), batch 16, 448 of 550 pixels, Adam, learning rate 5e-4 / 512 x batch, cosine. Topology:
one GPU. Expected: 84.6 % with DeiT-T/16 (82.1 without DCAL), 92.0 % with the hybrid R50-ViT-B/16, which is
not here.

Re-identification (b16_reid at 256x128): the model, the triplet loss (`task.margin`) and the evaluator
"retrieval" are there, a sampler of several images per identity and a builder for its data are not.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import imagenet, parse, smoke

BATCH, BIRDS = 16, 5_994


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=(r"[tsb]16|mu", "b16"))
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
