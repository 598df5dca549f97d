"""The report page of a trained run and its baseline: what it shows is what the work directory holds."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from lookupjax import evaluate, report
from lookupjax.analysis.caption_report import CaptionRun
from lookupjax.analysis.judged_sections import MATRIX, confusion, confusion_table
from lookupjax.analysis.run_view import Judged
from lookupjax.analysis.throughput import distinct
from lookupjax.config import apply_changes, to_json
from lookupjax.errors import UserError
from lookupjax.evaluation import create_evaluators, run_evaluators
from lookupjax.evaluation.metrics import reliability
from lookupjax.evaluation.predictions import read_predictions
from lookupjax.layers.decoding import Decoding
from lookupjax.training.experiment import evaluation_params
from lookupjax.workdir import load_trained, read_config

EXAMPLES = 90
ODD = ("$lr$_1^2", "_vit", "a$\\frac{$b")  # Matplotlib would typeset, leave out or refuse them
LATER = ("evaluation", "baselines", "attempts.json", "report")  # what an old work directory lacks
TINY = [
    "--config=configs/quickstart.py",
    *("--config.model.dim=16", "--config.model.depth=1", "--config.model.num_heads=2"),
    "--config.grids=(2,2),(3,3)",
    f"--config.data.eval_split=test[:{EXAMPLES}]",
    *("--config.batch_size=16", "--config.eval_batch_size=64", "--config.steps=12"),
    *("--config.schedule.warmup_steps=2", "--config.eval_every=6", "--config.log_every=3"),
    *("--config.checkpoint.every=0", "--config.report=False"),
]


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """A LookupViT of two grids and its baseline, a ViT, hardly trained: they make mistakes."""
    workdir = tmp_path_factory.mktemp("report") / "run"
    train(*TINY, f"--workdir={workdir}")
    return workdir


@pytest.fixture(scope="module")
def written(trained) -> str:
    return report.write_page([trained]).read_text()


def section(text: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', text, re.DOTALL)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all body rows, without tags."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    cells = ([re.sub(r"<[^>]*>", "", c) for c in re.findall(r"<td.*?>(.*?)</td>", r)] for r in found)
    return [row for row in cells if row]


def predictions(workdir: Path, call: str):
    return read_predictions(workdir / f"evaluation/figures/predictions_digits_test[:{EXAMPLES}]_{call}.npz")


def test_the_page_is_one_file(written):
    assert not re.search(r"https?:|@import|<link|<script", written)
    sources = re.findall(r'(?:src|href)="([^#"][^"]*)"', written)
    assert len(sources) == 3 * 12  # two grids and the baseline, so many mistakes each
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (32, 32)
    assert set(re.findall(r"url\((.*?)\)", written)) == set(
        f"#{name}" for name in re.findall(r'<clipPath id="(.*?)"', written)
    )


WIDTH = """<body><iframe src="report.html" style="width: 390px; height: 800px; border: 0"></iframe><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  for (const folded of page.querySelectorAll("details")) folded.open = true;
  document.body.dataset.wide = page.documentElement.scrollWidth;
  document.body.dataset.seen = page.querySelectorAll("svg.chart").length;
});
</script>"""


def test_nothing_is_wider_than_a_phone(trained, written):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    frame = trained / "report/frame.html"
    frame.write_text(WIDTH)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command = [chromium, *options, "--virtual-time-budget=5000", frame.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert int(re.search(r'data-wide="(\d+)"', dom)[1]) <= 390
    assert int(re.search(r'data-seen="(\d+)"', dom)[1]) == 3 + 3  # curves, cost, calibration


def test_figures_are_those_of_the_results(trained, written):
    shown = {(row[0], row[2]): row for row in rows(section(written, "figures"))}
    results = json.loads((trained / "results.json").read_text())
    baseline = json.loads((trained / "baselines/vit/results.json").read_text())
    assert set(shown) == {("lookupvit_mu", "2x2"), ("lookupvit_mu", "3x3"), ("vit", "-")}
    for (name, grid), row in shown.items():
        found = baseline[""] if name == "vit" else results[grid]
        assert row[-len(found) :] == [
            *(f"{found[k]:.4f}" for k in ("accuracy", "nll", "top5")),
            str(EXAMPLES),
        ]
    assert [row[-1].split(" ±")[0] for row in rows(section(written, "accuracy-and-cost"))] == [
        f"{found['accuracy']:.2%}" for found in (*results.values(), *baseline.values())
    ]


def test_predictions_give_the_figures_and_the_confusion_matrix(trained, written):
    results = json.loads((trained / "results.json").read_text())
    tables = section(written, "confusion").split("<table")[1:]
    for call, text in zip(("2x2", "3x3"), tables):
        found = predictions(trained, call)
        assert found.index.tolist() == list(range(EXAMPLES)) and list(found.words) == [
            str(i) for i in range(10)
        ]
        assert (found.label == found.predicted).mean() == pytest.approx(results[call]["accuracy"])
        assert -np.log(found.probability).mean() == pytest.approx(results[call]["nll"], rel=1e-4)
        assert (found.confidence >= found.probability).all()
        counts = np.array([[int(cell or 0) for cell in row[1:-1]] for row in rows(text)])
        assert counts.sum() == EXAMPLES and counts.shape == (10, 10)
        assert np.trace(counts) == round(EXAMPLES * results[call]["accuracy"])
        np.testing.assert_array_equal(counts.sum(1), np.bincount(found.label, minlength=10))
        np.testing.assert_array_equal(counts.sum(0), np.bincount(found.predicted, minlength=10))


def test_calibration_is_that_of_the_classification_evaluator(trained, written):
    experiment, part = load_trained(trained)
    context = experiment.context(experiment.calls())
    evaluators = create_evaluators({"c": {"type": "classification"}}, context, ["c"])
    figures = run_evaluators(evaluators, evaluation_params(part), part["stats"])
    shown = {row[1].split(" ")[0]: row for row in rows(section(written, "calibration"))}
    for call in ("2x2", "3x3"):
        assert float(shown[call][3]) == pytest.approx(figures[call]["c/ece"], abs=6e-5)


def test_mistakes_are_the_most_confident_and_their_pictures_the_right_ones(trained, written):
    found = predictions(trained, "3x3")
    wrong = found.label != found.predicted
    shown = list(found.pictures)
    assert wrong[shown].all() and list(found.confidence[shown]) == sorted(found.confidence[wrong])[::-1][:12]
    experiment, _ = load_trained(trained)
    images = np.concatenate([batch["image"] for batch in experiment.context([()]).batches()])
    image = images[found.index[shown[0]], ..., 0]
    drawn = np.asarray(Image.open(io.BytesIO(found.pictures[shown[0]])))[..., 0] / 255
    np.testing.assert_allclose(drawn, (image - image.min()) / np.ptp(image), atol=0.003)
    text = section(written, "worst-mistakes")
    said, sure, true = (x[shown[0]] for x in (found.predicted, found.confidence, found.label))
    assert (
        f"<b>{said}</b> {sure:.1%}<br>label {true}" in text
        and f"of {wrong.sum()} mistakes among {EXAMPLES} examples" in text
    )


def test_settings_that_differ_and_where_the_time_went(trained, written):
    shown = {row[0]: row[1:] for row in rows(section(written, "settings"))}
    assert shown["model.name"] == ["lookupvit_mu", "vit_mu"] and shown["grids"] == ["((2, 2), (3, 3))", "()"]
    assert "seed" not in shown and "seed = 0" in written
    time = rows(section(written, "time"))
    seconds = [float(cell.split(" s")[0].replace(",", "")) for cell in time[0] if " s" in cell]
    assert [row[0] for row in time] == ["lookupvit_mu", "vit"] and "compilation" in section(written, "time")
    assert sum(seconds[1:]) == pytest.approx(seconds[0], abs=0.5)


def test_several_runs_older_ones_and_unfinished_ones(trained, tmp_path, capsys):
    older, unfinished = tmp_path / "older", tmp_path / "unfinished"
    shutil.copytree(trained, older, ignore=shutil.ignore_patterns(*LATER))
    unfinished.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(trained / name, unfinished)
    lines = (unfinished / "metrics.jsonl").read_text().splitlines()
    half = [line for line in lines if json.loads(line)["step"] <= 6]
    (unfinished / "metrics.jsonl").write_text("\n".join([*half, '{"step": 7, "train/lo']))
    out = tmp_path / "both.html"
    report.main([f"--out={out}", "--workdir", str(older), str(unfinished)])
    assert capsys.readouterr().out == f"{out}\n"
    text = out.read_text()
    figures = rows(section(text, "figures"))
    assert [row[0] for row in figures] == ["older"] * 2 + ["unfinished"] * 2
    assert figures[2][5] == "6 of 12, unfinished" and 0 <= float(figures[2][6]) <= 1
    assert f"run python -m lookupjax.evaluate --workdir={older}" in section(text, "confusion")
    assert "the run is not finished" in section(text, "confusion")
    assert not rows(section(text, "settings")) and "Not stored: unfinished." in section(text, "time")
    assert not (tmp_path / "older" / "report").exists()
    beside = rows(section(report.write_page([trained, older], out).read_text(), "figures"))
    assert [row[0].rpartition("/")[2] for row in beside] == ["run", "run", "run, vit", "older", "older"]

    evaluate.main([f"--workdir={older}"])
    assert len(list((older / "evaluation/figures").iterdir())) == 2
    assert "digits/test" in section(report.write_page([older]).read_text(), "confusion")


def test_wrong_inputs_are_one_sentence(trained, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ([str(tmp_path / "none")], "none is not a work directory"),
        ([str(trained), str(empty)], "empty is not a work directory"),
        ([str(trained), f"{trained}/../run"], "given twice"),
        ([str(trained), f"--out={tmp_path}"], "is a directory; name a file"),
        ([str(trained), str(trained / "baselines/vit"), "--markdown"], "--markdown is for one run"),
    ):
        with pytest.raises(UserError, match=message):
            report.main(["--workdir", *arguments])
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken, ignore=shutil.ignore_patterns("checkpoints", "baselines"))
    (broken / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results.json is damaged .*; delete it"):
        report.main(["--workdir", str(broken)])
    (broken / "results.json").write_text("{}")
    stored = next((broken / "evaluation/figures").iterdir())
    for content in (b"nothing", stored.read_bytes()[:-100]):
        stored.write_bytes(content)
        with pytest.raises(UserError, match=r"predictions_.* is damaged .*; delete it or evaluate again"):
            report.main(["--workdir", str(broken)])


def test_a_directory_that_may_only_be_read_is_evaluated(trained, tmp_path, monkeypatch, capsys, caplog):
    theirs = tmp_path / "theirs"
    shutil.copytree(trained, theirs, ignore=shutil.ignore_patterns(*LATER))
    monkeypatch.setattr("os.access", lambda path, mode: path != theirs)
    evaluate.main([f"--workdir={theirs}", "--compressed=2x2"])
    assert "accuracy" in capsys.readouterr().out and "theirs cannot be written to" in caplog.text
    assert not (theirs / "evaluation").exists()


def test_names_of_runs_are_literal_and_a_baseline_named_as_the_model_has_its_own(trained, tmp_path):
    workdir = tmp_path / "run"
    places = {"": workdir} | {x: workdir / "baselines" / x for x in (*ODD, "lookupvit_mu", "vit")}
    for seed, place in enumerate(places.values()):
        place.mkdir(parents=True)
        (place / "config.json").write_text(to_json(apply_changes(read_config(trained), {"seed": seed})))
        row = {"step": 6, "train/loss": 1.5, "eval/3x3/accuracy": 0.25}
        (place / "metrics.jsonl").write_text(json.dumps(row))
    text = report.write_page([workdir]).read_text()
    names = ["lookupvit_mu", *ODD, "baseline lookupvit_mu", "vit"]
    assert [row[0] for row in rows(section(text, "figures"))] == names
    drawn = re.findall(r">\u200b?([^<>]*)</text>", section(text, "learning-curves"))
    assert all(drawn.count(name) == 1 and drawn.count(f"{name} 3x3") == 1 for name in names)
    assert rows(section(text, "settings")) == [["seed", *map(str, range(len(names)))]]
    options = Decoding(length=4)
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    captioners = distinct([CaptionRun(name, model, {}, options) for name in ("vit", "vit", "lookupvit")])
    assert [run.name for run in captioners] == ["vit", "vit 2", "lookupvit"]


def test_the_shape_of_an_older_run_is_that_of_its_transforms_or_unknown(trained):
    """A shorter side says nothing on the other one; height comes before width."""
    data = read_config(trained).data
    short, crop = dict(name="resize_short_side", size=40), dict(name="centre_crop", size=(24, 32))
    for transforms, shape in (((short, crop), (24, 32, 1)), ((crop, short), None), ((), None)):
        data.eval_transforms = transforms
        if shape:
            assert report.configured_shape(data) == shape
        else:
            with pytest.raises(UserError, match="the size of its inputs is not in its config"):
                report.configured_shape(data)


def test_an_interrupted_page_leaves_the_old_one(trained, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    out = tmp_path / "page.html"
    out.write_text("the old one")
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.write_page([trained / "baselines/vit"], out)
    assert out.read_text() == "the old one"


def test_pictures_that_are_too_large_or_too_many_are_left_out_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LARGEST", 2000)
    monkeypatch.setattr(report, "DRAWN", 3)
    (tmp_path / "e").mkdir()
    for name, size in (("a", 10), ("b", 2001), ("c", 2000), ("d", 9), ("f", 8), ("reliability_", 1)):
        (tmp_path / f"e/{name}.png").write_bytes(b"x" * size)
    drawn, notes = report.pictures(tmp_path)
    assert {name: len(data) for name, data in drawn.items()} == {"e/a.png": 10, "e/c.png": 2000, "e/d.png": 9}
    assert len(notes) == 2 and f"{tmp_path}/e/b.png is left out" in notes[0]
    assert notes[1] == f"pictures from {tmp_path}/e/f.png on are left out: this page shows 3 of a run"


def judged(classes: int, examples: int = 50_000) -> Judged:
    random = np.random.default_rng(0)
    label = random.integers(0, classes, examples)
    predicted = np.where(random.uniform(size=examples) < 0.2, (label + 1) % classes, label)
    confidence = random.uniform(0.5, 1, examples).astype(np.float32)
    bins = tuple(reliability(confidence, (label == predicted).astype(np.float64)))
    words = [f"<{i}>" for i in range(classes)]
    return Judged(
        "", "d/test", np.arange(examples), label, predicted, confidence, confidence, words, bins, {}
    )


def test_a_thousand_classes_are_listed_by_their_confusions():
    many = judged(1000)
    text = confusion_table(many)
    assert "<th>right</th></tr>" not in text and len(text) < 20_000 and not re.search(r"<\d", text)
    counts = confusion(many.label, many.predicted, 1000)
    np.fill_diagonal(counts, 0)
    first = [row for row in rows(text) if len(row) == 4]
    assert [int(row[2]) for row in first] == sorted(counts.ravel().tolist())[::-1][:20]
    assert first[0][1] == "&lt;{}&gt;".format((int(re.search(r"\d+", first[0][0])[0]) + 1) % 1000)
    assert len(rows(confusion_table(judged(MATRIX)))) == MATRIX
