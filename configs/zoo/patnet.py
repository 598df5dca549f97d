"""PATNet on ImageNet-1K: `configs/zoo/patnet.py:t2`.

Argument: variant (t0, t1, t2, s, m, l, each also with _sp, t1 with _nosp), "smoke" (a minute, anywhere).
Default t2.

Recipe of haiduo/PartialNet's yaml files: AdamW 4e-3 at batch 4096 (m, l: 2e-3 at 2048), 300 epochs, warm-up
20, strengths growing with the model. Differs: the official runs train at 192 pixels until epoch 280, this one
at 224 throughout. Meant for 8 devices. Expected top-1 at 224 pixels, read off the repository's plot: t0 73.9,
t1 78.1, t2 80.2, s 82.1, m 83.1, l 83.9 %.
"""

from ml_collections import ConfigDict

from lookupjax.recipes import TIMM_RAND_AUGMENT, imagenet, parse, smoke

# batch, weight decay, clipping norm, mixup, strength of RandAugment, drop path
SIZES = {
    "t0": (4096, 0.005, 0.0, 0.05, 0.0, 0.0),
    "t1": (4096, 0.01, 0.0, 0.1, 3.0, 0.02),
    "t2": (4096, 0.02, 0.0, 0.1, 5.0, 0.05),
    "s": (4096, 0.03, 0.0, 0.3, 7.0, 0.1),
    "m": (2048, 0.05, 1.0, 0.5, 7.0, 0.2),
    "l": (2048, 0.05, 0.01, 0.7, 7.0, 0.3),
}


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, variant=(f"({'|'.join(SIZES)})(_sp|_nosp)?", "t2"))
    batch, decay, clip, mixup, strength, drop_path = SIZES[asked["variant"].partition("_")[0]]
    rate = 1e-3 * batch / 1024
    config = imagenet(
        f"patnet_{asked['variant']}",
        batch_size=batch,
        learning_rate=rate,
        final_rate=1e-5 / rate,
        warmup_epochs=20,
        weight_decay=decay,
        clip_norm=clip,
        mixup=mixup,
        rand_augment=TIMM_RAND_AUGMENT | dict(m=strength) if strength else None,
        erasing=0.0,
        drop_path=drop_path,
        crop_pct=0.9,
    )
    return smoke(config) if asked["smoke"] else config
