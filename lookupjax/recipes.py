"""Published training recipes for ImageNet-like classification, and the small version of any config.

    imagenet("lookupvit_b16", **AUGREG | dict(compressed=(5, 5)))   what a config file returns
    smoke(config)                                                   the same, anywhere, in about a minute

A recipe is the set of keys that differ from `default_config()`. Steps follow from the number of training
images, so nothing has to be on disk.
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lookupjax.errors import UserError
from lookupjax.models import find_model, model_options, native_size

Number = float | int
IMAGENET_1K = 1_281_167  # training images
IMAGENET_21K = 14_197_122  # images of the 21,841 classes of the 2011 release
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # pixels in [-1, 1]: Google's ViTs

# timm's "rand-m9-mstd0.5-inc1", filled with the mean colour
TIMM_RAND_AUGMENT = dict(
    n=2,
    m=9.0,
    operations="timm",
    std=0.5,
    increasing=True,
    probability=0.5,
    interpolation="random",
    fill=(124, 116, 104),
)

# DeiT (arXiv 2012.12877, table 9 and the official code): the defaults of `imagenet`, plus
DEIT = dict(repeats=3, ema=0.99996)

# scenic's AugReg ViT-B/16 from scratch on ImageNet-1K (after arXiv 2106.10270), 79.7 % top-1: LookupViT's
# likeliest recipe. scenic trains sigmoid cross-entropy with a head bias of -6.9; `loss` is softmax here.
AUGREG = dict(
    batch_size=4096,
    epochs=300,
    learning_rate=1e-3,
    warmup_epochs=10_000 * 4096 / IMAGENET_1K,
    final_rate=0.0,
    weight_decay=0.1,
    clip_norm=1.0,
    mixup=0.5,
    cutmix=0.0,
    label_smoothing=0.0,
    rand_augment=dict(n=2, m=15.0, operations="tf"),
    erasing=0.0,
    drop_path=0.1,
    dropout=0.1,
    mean=HALF,
    std=HALF,
    crop_area=(0.05, 1.0),
    interpolation="bilinear",
)

# AugReg's strengths of augmentation (big_vision's configs): MixUp parameter and RandAugment strength
AUGMENTATION = {
    "none": dict(mixup=0.0, rand_augment=None),
    "light1": dict(mixup=0.0, rand_augment=dict(n=2, m=0.0, operations="tf")),
    "light2": dict(mixup=0.2, rand_augment=dict(n=2, m=10.0, operations="tf")),
    "medium1": dict(mixup=0.2, rand_augment=dict(n=2, m=15.0, operations="tf")),
    "medium2": dict(mixup=0.5, rand_augment=dict(n=2, m=15.0, operations="tf")),
    "strong1": dict(mixup=0.5, rand_augment=dict(n=2, m=20.0, operations="tf")),
    "strong2": dict(mixup=0.8, rand_augment=dict(n=2, m=20.0, operations="tf")),
}

# AugReg's fine-tuning (vision_transformer's code): no mixing, no RandAugment, no decay, 20,000 steps
FINETUNE = dict(
    batch_size=512,
    epochs=20_000 * 512 / IMAGENET_1K,
    warmup_epochs=500 * 512 / IMAGENET_1K,
    optimizer="sgd",
    learning_rate=0.03,
    final_rate=0.0,
    weight_decay=0.0,
    clip_norm=1.0,
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
    rand_augment=None,
    erasing=0.0,
    mean=HALF,
    std=HALF,
    crop_area=(0.05, 1.0),
    interpolation="bilinear",
)

# The sets that an ImageNet-1K model is judged on beside its own validation images
SHIFTS = {
    "v2": dict(type="classification", data=dict(name="imagenet_v2"), split="test"),
    "sketch": dict(type="classification", data=dict(name="imagenet_sketch"), split="test"),
    "a": dict(type="classification", data=dict(name="imagenet_a"), split="test"),
    "r": dict(type="classification", data=dict(name="imagenet_r"), split="test"),
    "o": dict(type="outliers"),
    "real": dict(type="real"),
}


def parse(argument: str, **kinds: tuple[str, Any]) -> dict[str, Any]:
    """The parts of a config's argument, such as "B/16,5x5:smoke", by what they look like.

    Args:
      kinds: name -> (regular expression, default); a part goes to the first kind that it matches whole.

    Returns:
      {name: the part, or the default}, and {"smoke": whether "smoke" was among them}.

    Raises:
      UserError: for a part that matches no kind.
    """
    found: dict[str, Any] = {name: default for name, (_, default) in kinds.items()} | {"smoke": False}
    for word in filter(None, re.split("[,:]", argument)):
        kind = next((name for name, (pattern, _) in kinds.items() if re.fullmatch(pattern, word)), "")
        if word == "smoke":
            found["smoke"] = True
        elif kind:
            found[kind] = word
        else:
            known = [
                f"{name} (such as {default})" if default else f"{name} ({pattern})"
                for name, (pattern, default) in kinds.items()
            ]
            raise UserError(f"config argument {argument!r}: {word!r} is none of {', '.join(known)} and smoke")
    return found


def model_name(family: str, variant: str) -> str:
    """("vit", "B/16") -> "vit_b16"."""
    return f"{family}_{variant.replace('/', '').lower()}"


def views(
    size: tuple[int, int],
    *,
    crop_area: tuple[float, float] = (0.08, 1.0),
    rand_augment: Mapping[str, Any] | None = None,
    colour_jitter: Number = 0.0,
    erasing: Number = 0.0,
    crop_pct: Number = 0.875,
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> dict[str, tuple[dict[str, Any], ...]]:
    """{"train_transforms", "eval_transforms"} of the usual ImageNet pipelines.

    `interpolation` is that of evaluation, where it decides tenths of a percent; training crops are
    resized by area averaging or bilinearly, which is several times faster.
    """
    normalize = dict(name="normalize", mean=tuple(mean), std=tuple(std))
    train = [dict(name="random_resized_crop", size=size, area=crop_area), dict(name="random_flip")]
    if rand_augment:
        train.append(dict(name="rand_augment", **rand_augment))
    if colour_jitter:
        strengths = dict.fromkeys(("brightness", "contrast", "saturation"), colour_jitter)
        train.append(dict(name="colour_jitter", **strengths))
    train.append(normalize)
    if erasing:
        train.append(dict(name="random_erasing", probability=erasing))
    crop = dict(name="centre_crop", size=size, crop_pct=crop_pct, interpolation=interpolation)
    return dict(train_transforms=tuple(train), eval_transforms=(crop, normalize))


def imagenet(
    model: str,
    *,
    size: int | tuple[int, int] = 224,
    epochs: Number = 300,
    batch_size: int = 1024,
    optimizer: str = "adamw",
    learning_rate: Number = 1e-3,
    b2: Number = 0.999,
    weight_decay: Number = 0.05,
    clip_norm: Number = 0.0,
    layer_decay: Number = 1.0,
    warmup_epochs: Number = 5,
    final_rate: Number = 0.01,
    mixup: Number = 0.8,
    cutmix: Number = 1.0,
    label_smoothing: Number = 0.1,
    loss: str = "softmax",
    crop_area: tuple[float, float] = (0.08, 1.0),
    rand_augment: Mapping[str, Any] | None = TIMM_RAND_AUGMENT,
    colour_jitter: Number = 0.0,
    erasing: Number = 0.25,
    repeats: int = 1,
    ema: Number = 0.0,
    drop_path: Number | None = None,
    crop_pct: Number = 0.875,
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    grids: tuple[tuple[int, int], ...] = (),
    dataset: str = "imagenet2012",
    eval_split: str = "validation",
    train_images: int = IMAGENET_1K,
    dtype: str = "bfloat16",
    **options: Any,
) -> ConfigDict:
    """The config of a published recipe; the defaults are the timm-style recipe that began with DeiT.

    Args:
      model: a name of `create_model`; `drop_path` and `options` are options of that model.
      size: of the training and evaluation images, pixels.
      learning_rate: peak, for this batch size.
      final_rate: last learning rate as a share of the peak (DeiT: 1e-5 of 1e-3).
      mixup, cutmix: Beta parameters, 0 for none.
      rand_augment: arguments of the transform, None for none.
      erasing: probability. crop_pct, interpolation: of the evaluation view.
      repeats: views of each image in a batch. ema: decay of the parameters' average, 0 for none.
      grids: compressed grids of a multi-resolution LookupViT.

    Raises:
      UserError: for an unknown model, or a warm-up as long as the training.
    """
    shape = (size, size) if isinstance(size, int) else tuple(size)
    find_model(model)
    if drop_path is not None:
        options["drop_path"] = drop_path
    epoch = train_images / batch_size
    steps, warmup = round(epochs * epoch), round(warmup_epochs * epoch)
    if warmup >= steps:
        raise UserError(f"warmup_epochs={warmup_epochs} must be shorter than epochs={epochs}")
    pipeline = views(
        shape,
        crop_area=crop_area,
        rand_augment=rand_augment,
        colour_jitter=colour_jitter,
        erasing=erasing,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    return ConfigDict(
        dict(
            model=dict(name=model, **options),
            dtype=dtype,
            grids=grids,
            task=dict(name="classification", loss_kind=loss, label_smoothing=label_smoothing),
            data=dict(
                name=dataset,
                train_split="train",
                eval_split=eval_split,
                repeats=repeats,
                threads=16,
                **pipeline,
            ),
            batch_size=batch_size,
            eval_batch_size=1024,
            steps=steps,
            optimizer=dict(
                name=optimizer,
                learning_rate=learning_rate,
                b2=b2,
                weight_decay=weight_decay,
                clip_norm=clip_norm,
                layer_decay=layer_decay,
            ),
            schedule=dict(name="cosine", warmup_steps=warmup, end=final_rate),
            mixing=dict(mixup=mixup, cutmix=cutmix),
            ema=ema,
            log_every=100,
            eval_every=round(5 * epoch),
            checkpoint=dict(every=round(epoch), keep=2),
        )
    )


def smoke(config: ConfigDict, *, steps: int = 20, batch_size: int = 16, **options: Any) -> ConfigDict:
    """The same config small enough for any machine and about a minute: every part runs, nothing is learned.

    The model becomes its file's "mu" variant at that variant's input size, keeping the options that do not
    describe its shape; the data become `digits`, for a video model `moving_digits`, through the same
    transforms; the batch, the steps and the warm-up shrink. `options` are further options of the small model.
    """
    config = config.copy_and_resolve_references()
    module, _ = find_model(config.model.name)
    video = len(native_size(config.model.name)) == 3
    variant = "video_mu" if video and "video_mu" in module.VARIANTS else "mu"
    name = f"{module.__name__.rpartition('.')[2]}_{variant}"
    size = native_size(name)
    shape = {*module.VARIANTS["mu"], *(key for v in module.VARIANTS.values() for key in v), "num_classes"}
    known = model_options(name)
    kept = {k: v for k, v in config.model.items() if k != "name" and k in known and k not in shape}

    def shrink(transforms: tuple) -> tuple:
        small = [dict(t) | (dict(size=_like(t["size"], size)) if "size" in t else {}) for t in transforms]
        if video:
            small = [t | (dict(frames=size[0]) if "frames" in t else {}) for t in small]
            small.insert(0, dict(name="split_frames", frames=8))
        return tuple(small)

    with config.unlocked():
        config.model = ConfigDict(dict(name=name) | kept | options)
        config.batch_size, config.eval_batch_size, config.steps = batch_size, 128, steps
        config.log_every, config.eval_every, config.checkpoint = 5, steps // 2, dict(every=steps // 2, keep=2)
        config.grids = ((2, 2), (3, 3)) if config.get("grids") else ()
        config.mesh = dict(data=-1, fsdp=1, model=1)
        config.baselines, config.evaluators = {}, {}
        if "schedule" in config:
            config.schedule.warmup_steps = min(config.schedule.get("warmup_steps", 0), steps // 4)
        data = config.data
        if data.get("repeats", 1) > 1:
            data.repeats = 2  # divides the small batch
        dataset = "moving_digits" if video else "digits"
        data.update(name=dataset, dir="", train_split="train", eval_split="test", channels=3, threads=2)
        for key in ("train_transforms", "eval_transforms"):
            if key in data:
                data[key] = shrink(data[key])
    return config


def _like(asked: Any, size: tuple[int, ...]) -> Any:
    """`size` in the form of `asked`: one number (of a shorter side), or (height, width)."""
    return min(size) if isinstance(asked, int) else tuple(size[-2:])
