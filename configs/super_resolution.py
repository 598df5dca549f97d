"""CATANet, super-resolution by 2, 3 or 4: `configs/super_resolution.py:x2`.

    python -m lookupjax.train --config=configs/super_resolution.py:toy --workdir=runs/sr
    python -m lookupjax.predict --workdir=runs/sr PHOTO.png --output=enlarged/

Argument: scale (x2, x3, x4), "toy" (a small model on tiles of three photographs, for a CPU; bicubic
interpolation is scored beside it: expected PSNR 34.3 against its 32.6), "smoke" (twenty steps of it).
Default x2.

Recipe of arXiv 2503.06896 (official options): DIV2K, 64x64 low-resolution patches, flips and turns, batch 64,
L1, Adam (0.9, 0.99) at 2e-4 halved at milestones. x2 trains for 800k steps from scratch; x3 and x4 for 250k
from the x2 weights. Meant for one device with 24 GB or more, or several with the batch split. Expected on
Set5 (PSNR / SSIM on luma): x2 38.28 / .9617, x3 34.75 / .9300, x4 32.58 / .8998 (paper).
"""

from ml_collections import ConfigDict

from lookupjax.recipes import parse

LOW = 64  # side of the low-resolution patches


def halved(milestones: tuple[int, ...], steps: int) -> tuple[tuple[float, float], ...]:
    """Knots of a schedule that halves the rate in one step at each milestone."""
    knots = [(0.0, 1.0)]
    for i, step in enumerate(milestones):
        knots += [(step / steps, 0.5**i), ((step + 1) / steps, 0.5 ** (i + 1))]
    return tuple(knots)


def recipe(scale: int) -> ConfigDict:
    scratch = scale == 2
    steps = 800_000 if scratch else 250_000
    milestones = (
        (300_000, 500_000, 650_000, 700_000, 750_000) if scratch else (125_000, 200_000, 225_000, 237_500)
    )
    keep_range = dict(name="normalize", mean=0.0, std=1.0)
    crop = dict(name="random_crop", size=(LOW * scale, LOW * scale))
    return ConfigDict(
        dict(
            seed=3407,
            model=dict(name=f"catanet_x{scale}"),
            task=dict(name="super_resolution"),
            data=dict(
                name="div2k",
                eval_split="validation",
                train_transforms=(crop, dict(name="random_quarter_turn", flip=True), keep_range),
                eval_transforms=(keep_range,),
            ),
            batch_size=64,
            eval_batch_size=1,  # the images differ in size
            steps=steps,
            optimizer=dict(name="adam", learning_rate=2e-4, b2=0.99, clip_norm=0.0),
            schedule=dict(name="knots", knots=halved(milestones, steps)),
            # x3, x4: --config.init.path=WORKDIR of the x2 run; the upsampler is trained anew
            init=dict(exclude=() if scratch else ("^up/",)),
            log_every=500,
            eval_every=5000,
            checkpoint=dict(every=5000),
        )
    )


def toy(steps: int, scale: int = 2) -> ConfigDict:
    config = recipe(scale)
    config.model = ConfigDict(
        dict(
            name="catanet_mu",
            scale=scale,
            dim=24,
            qk_dim=16,
            mlp_dim=48,
            num_tokens=(8, 16),
            group_sizes=(64, 32),
            windows=(8, 12),
            iterations=(3, 3),
        )
    )
    crop, turn, keep_range = config.data.train_transforms
    config.data.update(
        name="photos",
        eval_split="test",
        cache=True,
        train_transforms=(crop | dict(size=(48, 48)), turn, keep_range),
    )
    config.update(
        dict(batch_size=8, eval_batch_size=12, steps=steps, log_every=max(1, steps // 8), eval_every=0)
    )
    config.schedule.knots = halved((steps // 2, steps * 3 // 4), steps)
    config.optimizer.learning_rate = 2e-3
    config.evaluators = dict(tiles=dict(type="super_resolution", pictures=3))
    config.checkpoint = dict(every=0)
    return config


def get_config(argument: str = "") -> ConfigDict:
    asked = parse(argument, scale=("x[234]", "x2"), toy=("toy", ""))
    scale = int(asked["scale"][1:])
    return toy(20 if asked["smoke"] else 400, scale) if asked["toy"] or asked["smoke"] else recipe(scale)
