"""Published training recipes for video classification, and the small version of any of them.

    video("vivit_b16x2", **KINETICS)      what a config file returns
    small(config)                         the same, anywhere, in about a minute

As in `lookupjax.recipes` a recipe is the set of keys that differ from `default_config()`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lookupjax.errors import UserError
from lookupjax.models import find_model
from lookupjax.recipes import HALF, Number, smoke

# scenic's ViViT on Kinetics-400 (its configs, the clips that its authors still found on the web)
KINETICS = dict(dataset="kinetics400", train_clips=214_834, epochs=30, learning_rate=0.1)

# scenic's ViViT on Something-Something v2. Its clips are 32 consecutive frames; `segments` spreads them over
# the video instead, as everybody else does there. No flips: "pushing something from left to right" and its
# like are classes of their own, and a mirrored clip would have the wrong label.
SOMETHING = dict(
    dataset="something_something_v2",
    train_clips=168_913,
    epochs=35,
    learning_rate=0.4,
    size=256,
    crop_pct=256 / 288,
    sampling="segments",
    flip=False,
    colour=0.0,
    grey=0.0,
    rand_augment=dict(n=2, m=20.0, operations="tf"),
    mixup=0.3,
    label_smoothing=0.3,
    drop_path=0.3,
)
SAMPLINGS = ("clips", "segments")


def views(
    size: tuple[int, int],
    *,
    frames: int,
    stride: int,
    sampling: str,
    crop_pct: Number,
    scale: tuple[float, float],
    flip: bool,
    rand_augment: Mapping[str, Any] | None,
    colour: Number,
    grey: Number,
) -> dict[str, tuple[dict[str, Any], ...]]:
    """{"train_transforms", "eval_transforms"}: one random view, and the middle one."""
    if sampling not in SAMPLINGS:
        raise UserError(f"sampling={sampling!r} is unknown; choose one of {SAMPLINGS}")
    train: list[dict[str, Any]] = [dict(name="random_segments", frames=frames)]
    middle = dict(name="even_segments", frames=frames)
    if sampling == "clips":
        train = [dict(name="random_clip", frames=frames, stride=stride)]
        middle = dict(name="even_clips", frames=frames, stride=stride)
    train.append(dict(name="random_scaled_crop", size=size, crop_pct=crop_pct, scale=scale))
    if flip:
        train.append(dict(name="random_flip"))
    if rand_augment:
        train.append(dict(name="rand_augment", **rand_augment))
    if colour:
        jitter = dict(brightness=0.125, contrast=0.4, saturation=0.4, hue=0.2)
        train.append(dict(name="colour_jitter", probability=colour, **jitter))
    if grey:
        train.append(dict(name="random_grey", probability=grey))
    crop = dict(name="spatial_crops", size=size, crop_pct=crop_pct, crops=1)
    normalize = dict(name="normalize", mean=HALF, std=HALF)
    return dict(train_transforms=(*train, normalize), eval_transforms=(middle, crop, normalize))


def video(
    model: str,
    *,
    dataset: str,
    train_clips: int,
    epochs: Number,
    learning_rate: Number,
    size: int = 224,
    frames: int = 32,
    stride: int = 2,
    sampling: str = "clips",
    crop_pct: Number = 224 / 256,
    scale: tuple[float, float] = (0.9, 1.33),
    flip: bool = True,
    rand_augment: Mapping[str, Any] | None = None,
    colour: Number = 0.8,
    grey: Number = 0.1,
    batch_size: int = 64,
    warmup_epochs: Number = 2.5,
    mixup: Number = 0.0,
    label_smoothing: Number = 0.0,
    drop_path: Number = 0.0,
    test_views: tuple[int, int] = (4, 3),
    fresh: tuple[str, ...] = (),
    dtype: str = "bfloat16",
    **options: Any,
) -> ConfigDict:
    """The config of a published recipe; the defaults are those of scenic's ViViT on Kinetics-400.

    Args:
      model: a name of `create_model`; `drop_path` and `options` are options of that model.
      learning_rate: peak of SGD with momentum 0.9, for this batch size.
      size: of the crops, pixels; the shorter side is size / crop_pct before.
      stride, sampling: "clips" of `frames` frames at a stride, or one frame of each of `frames` "segments".
      scale: range of the scale jitter.
      colour, grey: probabilities of colour jitter and of taking all colour away.
      test_views: (clips, crops) of the evaluator "views".
      fresh: patterns of parameters that an image model does not have, for `init.exclude`.

    Raises:
      UserError: for an unknown model or sampling.
    """
    find_model(model)
    epoch = train_clips / batch_size
    pipeline = views(
        (size, size),
        frames=frames,
        stride=stride,
        sampling=sampling,
        crop_pct=crop_pct,
        scale=scale,
        flip=flip,
        rand_augment=rand_augment,
        colour=colour,
        grey=grey,
    )
    clips, crops = test_views
    return ConfigDict(
        dict(
            model=dict(name=model, drop_path=drop_path, **options),
            dtype=dtype,
            task=dict(name="classification", label_smoothing=label_smoothing),
            data=dict(name=dataset, train_split="train", eval_split="validation", threads=16, **pipeline),
            batch_size=batch_size,
            eval_batch_size=batch_size,
            steps=round(epochs * epoch),
            optimizer=dict(name="sgd", learning_rate=learning_rate, momentum=0.9, clip_norm=1.0),
            schedule=dict(name="cosine", warmup_steps=round(warmup_epochs * epoch)),
            mixing=dict(mixup=mixup),
            init=dict(path="", exclude=fresh),
            log_every=100,
            eval_every=round(5 * epoch),
            evaluators=dict(views=dict(type="multiview", clips=clips, crops=crops)),
            checkpoint=dict(every=round(epoch), keep=2),
        )
    )


def small(config: ConfigDict, **options: Any) -> ConfigDict:
    """`recipes.smoke` of a video config, with an evaluation of several views.

    The data become `moving_digits`, whose eight frames go through the same transforms.
    """
    config = smoke(config, **options)
    with config.unlocked():
        config.evaluators = dict(views=dict(type="multiview", clips=2, crops=3))
    return config
