"""experiments/imagenet_tradeoff: what its report says of finished and of missing runs."""

import dataclasses
import importlib
import json

import pytest

from lookupjax.config import load_config, to_json


@pytest.fixture
def experiment(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(root / "experiments" / "imagenet_tradeoff"))
    monkeypatch.chdir(root)
    monkeypatch.setenv("LOOKUPJAX_DATA", str(tmp_path / "data"))
    return importlib.import_module


def test_finished_and_missing_runs(experiment, tmp_path):
    report, runs = experiment("report"), experiment("runs")
    few = tuple(r for r in runs.DIGITS.runs if r.name in ("vit", "lookupvit_4x4", "lookupvit_multi"))
    runs.SCALES["few"] = dataclasses.replace(runs.DIGITS, runs=few)
    results = {
        "vit": {"": {"accuracy": 0.97, "examples": 360, "val/ece": 0.0123}},
        "lookupvit_multi": {
            "2x2": {"accuracy": 0.95, "examples": 360, "corrupted/mean_accuracy": 0.61},
            "6x6": {"accuracy": 0.98, "examples": 360},
        },
    }
    for name, figures in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(figures))
        config = next(run.config for run in runs.DIGITS.runs if run.name == name)
        (tmp_path / name / "config.json").write_text(to_json(load_config(config, [])))
    lines = report.write_report("few", tmp_path).read_text().splitlines()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines if "|" in line}
    assert "100% | 0.9700 | +0.0000 | - | - | 0.0123 | - |" in rows["vit", "-"]
    assert "0.9500 | -0.0200 | - | - | - | 0.6100 |" in rows["lookupvit_multi", "2x2"]
    assert "+0.0100" in rows["lookupvit_multi", "6x6"]
    assert "**missing**" in rows["lookupvit_multi", "3x3"] and "**missing**" in rows["lookupvit_4x4", "4x4"]
    assert "3 of 6 points are measured; the rest is missing: not trained yet." in lines
    assert (tmp_path / "accuracy_macs.png").stat().st_size > 20_000


def test_every_run_has_a_config(experiment):
    for name, scale in experiment("runs").SCALES.items():
        for run in scale.runs:
            config = load_config(run.config, list(run.overrides))
            assert config.model.name.startswith(("vit_", "lookupvit_"))
            headed = {key.partition("/")[0] for key in scale.columns}
            assert headed == set(config.evaluators), (name, run.name)
