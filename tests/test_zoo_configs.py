"""configs/zoo: every file loads, as published and small, and what it names exists."""

from pathlib import Path

import pytest

from lookupjax.config import load_config
from lookupjax.data.transforms import build_transforms
from lookupjax.evaluation import list_evaluators
from lookupjax.models import model_options
from lookupjax.tasks import list_tasks

ZOO = Path(__file__).parent.parent / "configs/zoo"
ARGUMENTS = [(path.stem, "") for path in sorted(ZOO.glob("*.py"))] + [
    ("ccan", "b16"),
    ("ccan", "shared"),
    ("crossvit", "9"),
    ("crossvit", "adversarial"),
    ("crossvit", "brainscore"),
    ("dcal", "t16"),
    ("dcal", "b16_reid"),
    ("lookup_davit", "digits"),
    ("dependencyvit", "lite_s"),
    ("medusa", "lesions"),
]


@pytest.mark.parametrize("small", [False, True], ids=["published", "smoke"])
@pytest.mark.parametrize("file, argument", ARGUMENTS)
def test_config(file, argument, small):
    config = load_config(f"{ZOO}/{file}.py:{argument}{',smoke' if small else ''}", [])
    known = model_options(config.model.name)
    assert [key for key in config.model if key != "name" and key not in known] == []
    assert config.task.name in list_tasks()
    assert {spec["type"] for spec in config.evaluators.values()} <= set(list_evaluators())
    assert build_transforms(config.data.train_transforms) and build_transforms(config.data.eval_transforms)
    assert config.schedule.warmup_steps < config.steps
    if small:
        assert config.steps <= 50 and config.model.name.endswith("_mu")
