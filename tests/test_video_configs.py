"""configs/kinetics and configs/something_something: as published and small."""

import pytest

from lookupjax.config import apply_changes, default_config, differences, load_config
from lookupjax.data.loader import train_iterator
from lookupjax.data.transforms import build_transforms
from lookupjax.errors import UserError
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh
from lookupjax.video_recipes import KINETICS, video


@pytest.mark.parametrize(
    "file, argument, check",
    [
        ("kinetics/vivit", "", lambda c: c.steps == 100_703 and c.schedule.warmup_steps == 8_392),
        ("kinetics/vivit", "B/16x2,fe", lambda c: c.optimizer.learning_rate == 0.05),
        ("kinetics/vivit", "L/16x2,fsa", lambda c: c.init.exclude == ("/time_norm/",)),
        ("kinetics/lookupvit", "", lambda c: c.model.compressed == (8, 5, 5) and c.optimizer.name == "sgd"),
        ("kinetics/lookupvit", "S/16x2,5x5", lambda c: c.model.name == "lookup_vivit_s16x2"),
        ("something_something/vivit", "", lambda c: c.model.drop_path == 0.3 and c.mixing.mixup == 0.3),
        ("something_something/vivit", "B/16x2,joint", lambda c: c.task.label_smoothing == 0.3),
        ("something_something/lookupvit", "L/16x2,8x7x7", lambda c: c.model.pos_grid == (16, 16, 16)),
    ],
)
def test_config(root, file, argument, check):
    config = load_config(f"{root}/configs/{file}.py:{argument}", [])
    assert check(config)
    experiment = Experiment(resolve(config, data=False), make_mesh(config.mesh))
    assert experiment.abstract_model.loss_heads
    names = [t["name"] for t in config.data.train_transforms]
    flips = file.startswith("kinetics")
    assert ("random_flip" in names) == flips and ("rand_augment" in names) != flips
    assert names[0] == ("random_clip" if flips else "random_segments")
    assert build_transforms(config.data.train_transforms) and build_transforms(config.data.eval_transforms)
    small = load_config(f"{root}/configs/{file}.py:{argument},smoke", [])
    assert small.model.name.endswith("_mu") and small.data.name == "moving_digits" and small.steps == 20
    assert small.model.get("form", "joint") == getattr(experiment.abstract_model, "form", "joint")


def test_the_comparison_is_fair(root):
    ours = load_config(f"{root}/configs/kinetics/lookupvit.py", [])
    theirs = load_config(f"{root}/configs/kinetics/vivit.py", [])
    assert all(line.startswith("model.") for line in differences(theirs, ours))


def test_the_small_version_goes_through_every_transform(root, tmp_path):
    config = load_config(f"{root}/configs/something_something/lookupvit.py:smoke", [])
    config.data.dir = str(tmp_path)
    config = resolve(apply_changes(default_config(), config.to_dict()))
    batch = next(train_iterator(config.data, config.batch_size, 0))
    assert batch["image"].shape == (16, 8, 32, 32, 3)


def test_user_errors():
    with pytest.raises(UserError, match="sampling='clip' is unknown"):
        video("vivit_b16x2", **KINETICS, sampling="clip")
