"""Recipes: what follows from the numbers of the papers, and that their small versions train."""

import jax
import numpy as np
import pytest

from lookupjax.config import apply_changes, default_config, differences, load_config
from lookupjax.data.loader import train_iterator
from lookupjax.data.transforms import build_transforms
from lookupjax.errors import UserError
from lookupjax.recipes import AUGREG, DEIT, imagenet, smoke
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh
from lookupjax.training.step import make_train_step


def resolved(config):
    return apply_changes(default_config(), config.to_dict())


def test_steps_follow_from_the_dataset():
    deit = resolved(imagenet("vit_s16", **DEIT))
    assert deit.steps == 375_342 and deit.schedule.warmup_steps == 6_256  # 300 and 5 epochs of 1,251.1 steps
    augreg = resolved(imagenet("lookupvit_b16", **AUGREG))
    assert augreg.steps == 93_835 and augreg.schedule.warmup_steps == 10_000
    assert augreg.mixing.mixup == 0.5 and augreg.mixing.cutmix == 0.0 and augreg.model.dropout == 0.1


def test_every_transform_of_a_recipe_can_be_built():
    for config in (
        imagenet("vit_s16", colour_jitter=0.4),
        imagenet("vit_s16", size=384, crop_pct=1.0, **DEIT),
    ):
        names = [type(t).__name__ for t in build_transforms(config.data.train_transforms)]
        assert names[0] == "RandomResizedCrop" and names[-1] == "RandomErasing"
        crop = build_transforms(config.data.eval_transforms)[0]
        assert crop(np.zeros((500, 400, 3), np.uint8)).shape[:2] == crop.size


@pytest.mark.parametrize(
    "file, argument, check",
    [
        ("lookupvit", "", lambda c: c.model.compressed == (5, 5) and c.steps == 93_835 and not c.grids),
        ("lookupvit", "S/16,multi,384", lambda c: len(c.grids) == 4 and c.model.pos_grid == (24, 24)),
        (
            "lookupvit",
            "L/16,10x10,shifts",
            lambda c: c.model.compressed == (10, 10) and len(c.evaluators) == 6,
        ),
        ("vit", "Ti/16", lambda c: c.model.name == "vit_t16" and c.model.head == "gap"),
        ("vit", "B/32,384", lambda c: c.model.pos_grid == (12, 12)),
        ("imagenet21k", "vit_b16,30ep,medium2", lambda c: c.mixing.mixup == 0.5 and c.steps == 103_608),
        ("finetune", "", lambda c: c.steps == 20_000 and c.schedule.warmup_steps == 500),
        ("finetune", "vit_b16,224", lambda c: c.optimizer.name == "sgd" and c.mixing.mixup == 0.0),
    ],
)
def test_imagenet_configs(root, file, argument, check):
    path = f"{root}/configs/imagenet/{file}.py"
    config = load_config(f"{path}:{argument}", [])
    assert check(config)
    run = Experiment(config, make_mesh(config.mesh))
    assert run.abstract_model.loss_heads
    small = load_config(f"{path}:{argument}:smoke", [])
    assert small.model.name.endswith("_mu") and small.data.name == "digits" and small.steps == 20


def test_the_comparison_is_fair(root):
    """LookupViT and ViT differ in the model alone."""
    ours = load_config(f"{root}/configs/imagenet/lookupvit.py:B/16,5x5", [])
    theirs = load_config(f"{root}/configs/imagenet/vit.py:B/16", [])
    assert all(line.startswith("model.") for line in differences(theirs, ours))


def test_user_errors(root):
    with pytest.raises(UserError, match=r"'B/17x' is none of variant .such as B/16., grid"):
        load_config(f"{root}/configs/imagenet/lookupvit.py:B/17x", [])
    with pytest.raises(UserError, match="there is no model 'vit_b17'"):
        imagenet("vit_b17")
    with pytest.raises(UserError, match="shorter than epochs"):
        imagenet("vit_b16", epochs=5)


def test_the_small_version_goes_through_every_part(tmp_path):
    """Traced, not compiled: the step of each grid on a batch that every transform has made."""
    config = imagenet(
        "lookupvit_b16", **AUGREG | dict(grids=((3, 3), (5, 5)), erasing=0.2, cutmix=1.0, repeats=3)
    )
    small = smoke(config, steps=8)
    small.data.dir = str(tmp_path)
    small = resolve(resolved(small))
    assert small.model.name == "lookupvit_mu" and small.model.dropout == 0.1 and small.data.repeats == 2
    assert small.schedule.warmup_steps == 2
    assert [t["name"] for t in small.data.train_transforms] == [
        t["name"] for t in config.data.train_transforms
    ]
    batch = next(train_iterator(small.data, small.batch_size, 0))
    assert batch["image"].shape == (16, 32, 32, 3) and batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["label"][:8], batch["label"][8:])  # repeated augmentation
    assert not np.array_equal(batch["image"][:8], batch["image"][8:])
    run = Experiment(small, make_mesh(small.mesh))
    step = make_train_step(run.graphdef, run.task, run.optimizer, run.schedule, seed=0, mixing=run.mixing)
    assert run.calls() == [(("compressed", (2, 2)),), (("compressed", (3, 3)),)]
    _, metrics = jax.eval_shape(lambda s, b: step(s, b, run.calls()[1]), run.abstract_state, batch)
    assert metrics["loss"].shape == ()
