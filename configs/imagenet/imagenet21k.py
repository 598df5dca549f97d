"""Pre-training on ImageNet-21K with the AugReg recipe, for fine-tuning by configs/imagenet/finetune.py.

    python -m lookupjax.train --config=configs/imagenet/imagenet21k.py:lookupvit_b16,30ep --workdir=runs/i21k

Argument: a model name (lookupvit_b16, vit_b16, ...), epochs (30ep, 300ep), strength of augmentation (none,
light1, light2, medium1, medium2, strong1, strong2), "smoke". Default lookupvit_b16,300ep,light2: AugReg's
choice for B/16 (big_vision's vit_i21k.py).

The first 51,200 images of the prepared (shuffled) set are held out for evaluation. AugReg trains sigmoid
cross-entropy with a head bias of -10, this softmax cross-entropy, because our heads start at zero; weight
decay 0.03 for 300 epochs, 0.1 for 30. Topology: v4:2x4x4 (32 chips), batch 4096. Cost: 300 epochs of
LookupViT-B/16 5x5 take 2.2e20 FLOP, about 17 hours on 32 v4 chips at 40 % of their peak; ViT-B/16 twice that.
Expected after fine-tuning: ViT-B/16 85.49 % at 384 (the AugReg release), 84.0 % at 224; of LookupViT no table
could be had.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import AUGMENTATION, AUGREG, IMAGENET_21K, imagenet, parse, smoke

HELD_OUT = 51_200


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(
        argument,
        epochs=(r"\d+ep", "300ep"),
        augmentation=("|".join(AUGMENTATION), "light2"),
        model=(r"\w+_\w+", "lookupvit_b16"),
    )
    epochs, images = int(asked["epochs"].removesuffix("ep")), IMAGENET_21K - HELD_OUT
    changes = dict(
        epochs=epochs,
        warmup_epochs=10_000 * AUGREG["batch_size"] / images,
        weight_decay=0.03 if epochs >= 300 else 0.1,
        dataset="imagenet21k",
        eval_split=f"train[:{HELD_OUT}]",
        train_images=images,
    )
    if asked["model"].startswith("vit_"):
        changes["head"] = "gap"  # as LookupViT averages its tokens
    config = imagenet(asked["model"], **AUGREG | AUGMENTATION[asked["augmentation"]] | changes)
    config.data.train_split = f"train[{HELD_OUT}:]"
    return smoke(config) if asked["smoke"] else config
