"""The recipe of COCO's captions with a frozen encoder, and its small version.

    captioning("lookupvit_b16", dict(compressed=(5, 5)))     what a config file returns
    smoke(config)                                            the same, anywhere, in about a minute

After big_vision's COCO transfer: Karpathy's train and restval images at 224 pixels, one caption drawn at each
visit, batch 256, 5 epochs, Adam, learning rate 1e-4 with 5 % warm-up and a cosine, clipping at 1, pixels in
[-1, 1]. Ours differ: the decoder alone learns, label smoothing 0.1 (GIT), 4 beams.
"""

from typing import Any

from ml_collections import ConfigDict

from lookupjax.models import find_model, model_options, native_size
from lookupjax.recipes import HALF, views

TRAIN_IMAGES = 82_783 + 30_504  # Karpathy's train and restval
SCORES = ("bleu", "rouge_l", "cider", "meteor", "spice")  # what is missing is left out with a reason


def captioning(
    encoder: str,
    options: dict[str, Any],
    *,
    size: int = 224,
    form: str = "cross",
    epochs: float | int = 5,
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    vocabulary: int = 10_000,
    length: int = 32,
    beams: int = 4,
    cache_tokens: bool = False,
    dtype: str = "bfloat16",
) -> ConfigDict:
    """The config; the encoder's weights are `--config.init.path`.

    Args:
      encoder, options: name and options of `create_model`; its position table follows `size`, and the
        decoder is as wide as the encoder.
      form: of the decoder, "cross" or "prefix".
      length: of a caption in tokens. vocabulary: size of the tokenizer that is trained.
      cache_tokens: train on the encoder's tokens of the images without augmentation, computed once.
    """
    known = model_options(encoder)
    steps = round(epochs * TRAIN_IMAGES / batch_size)
    pipeline = views((size, size), crop_area=(0.5, 1.0), interpolation="bilinear", mean=HALF, std=HALF)
    captions = dict(name="captions", length=length)
    return ConfigDict(
        dict(
            model=dict(
                name="captioner_b",
                encoder=encoder,
                encoder_options=options | dict(pos_grid=tuple(size // side for side in known["patch"])),
                length=length,
                decoder=dict(form=form),
                dim=known["dim"],
                num_heads=known["num_heads"],
            ),
            dtype=dtype,
            task=dict(name="captioning", label_smoothing=0.1),
            frozen=("^encoder/",),
            init=dict(module="encoder"),
            cache_tokens=cache_tokens,
            data=dict(
                name="coco_captions",
                train_split="train+restval",
                eval_split="val",
                tokenizer=dict(kind="bpe", size=vocabulary),
                threads=16,
                **{name: (captions, *transforms) for name, transforms in pipeline.items()},
            ),
            batch_size=batch_size,
            eval_batch_size=256,
            steps=steps,
            optimizer=dict(name="adam", learning_rate=learning_rate, b2=0.999, clip_norm=1.0),
            schedule=dict(name="cosine", warmup_steps=round(0.05 * steps)),
            evaluators=dict(
                val=dict(type="captions", beams=beams, scores=SCORES),
                test=dict(type="captions", split="test", beams=beams, scores=SCORES),
            ),
            log_every=50,
            eval_every=round(TRAIN_IMAGES / batch_size),
            checkpoint=dict(every=round(TRAIN_IMAGES / batch_size), keep=2),
        )
    )


def smoke(config: ConfigDict, *, steps: int = 20, batch_size: int = 16) -> ConfigDict:
    """The same config small enough for any machine: the encoder's "mu" variant, a tiny decoder, scenes of
    `captioned_digits`, which need no preparation. Every part runs, nothing is learned.
    """
    config = config.copy_and_resolve_references()
    module, _ = find_model(config.model.encoder)
    encoder = f"{module.__name__.rpartition('.')[2]}_mu"
    kept = {k: v for k, v in config.model.encoder_options.items() if k == "head"}
    size, captions = native_size(encoder), dict(name="captions", length=16)

    def shrink(transforms: tuple) -> tuple:
        sized = (dict(t) | (dict(size=size) if "size" in t else {}) for t in transforms)
        return tuple(captions if t["name"] == "captions" else t for t in sized)

    data = config.data
    with config.unlocked():
        config.model = ConfigDict(
            dict(name="captioner_mu", encoder=encoder, encoder_options=kept, decoder=config.model.decoder)
        )
        config.batch_size, config.eval_batch_size, config.steps = batch_size, 16, steps
        config.log_every, config.eval_every = 5, 0
        config.checkpoint, config.evaluators = (
            dict(every=0, keep=1),
            dict(captions=dict(type="captions", beams=2)),
        )
        config.schedule.warmup_steps = min(config.schedule.warmup_steps, steps // 4)
        data.update(name="captioned_digits", train_split="train[:512]", eval_split="test[:32]", threads=2)
        data.tokenizer.size = 64
        data.train_transforms, data.eval_transforms = (
            shrink(data.train_transforms),
            shrink(data.eval_transforms),
        )
    return config
