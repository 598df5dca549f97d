"""configs/quickstart_caption.py, tiny: an encoder is trained and frozen, a decoder learns from its tokens."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from lookupjax import attention_views, evaluate, predict
from lookupjax.config import load_config
from lookupjax.errors import UserError
from lookupjax.paths import named_leaves
from lookupjax.training.experiment import Experiment, evaluation_params, resolve
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import load_trained

SMALL = {"dim": 16, "depth": 1, "num_heads": 2}
TINY = [
    *(f"--config.pretraining.model.{key}={value}" for key, value in SMALL.items()),
    *(f"--config.model.encoder_options.{key}={value}" for key, value in SMALL.items()),
    *(f"--config.model.{key}={value}" for key, value in SMALL.items()),
    "--config.pretraining.steps=2",
    "--config.pretraining.schedule.warmup_steps=0",
    "--config.data.train_split=train[:48]",
    "--config.data.eval_split=test[:20]",
    "--config.eval_batch_size=16",
    "--config.batch_size=16",
    "--config.pretraining.batch_size=16",
    "--config.steps=3",
    "--config.schedule.warmup_steps=0",
    "--config.ema=0.9",
    "--config.baselines={}",
    "--config.evaluators.captions.beams=2",
    "--config.log_every=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root, train):
    workdir = tmp_path_factory.mktemp("run")
    data = tmp_path_factory.mktemp("data")
    config = f"--config={root / 'configs/quickstart_caption.py'}"
    train(config, f"--workdir={workdir}", f"--config.data.dir={data}", *TINY)
    return workdir


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in named_leaves(jax.device_get(tree)).items()}


def test_the_encoder_is_frozen(trained):
    """Bit-identical to the pretrained one; neither the optimizer nor the average has anything of it."""
    experiment, part = load_trained(trained)
    before = evaluation_params(load_trained(trained / "pretraining")[1])
    encoder = {n.removeprefix("encoder/"): x for n, x in arrays(part["params"]).items() if "encoder/" in n}
    assert encoder.keys() == arrays(before).keys() and len(encoder) > 20
    for name, x in arrays(before).items():
        np.testing.assert_array_equal(encoder[name], x, err_msg=name)
    decoder = [n for n in arrays(part["params"]) if n.startswith("decoder/")]
    state = experiment.abstract_state
    assert sorted(arrays(part["ema"])) == sorted(decoder)
    moments = {re.split("/[mn]u/", n)[1] for n in named_leaves(state.opt_state) if re.search("/[mn]u/", n)}
    assert moments == set(decoder)
    start = arrays(experiment.create_state().params)
    assert all(np.any(start[n] != x) for n, x in arrays(part["params"]).items() if n in decoder)


def test_memory_per_device_shows_it(root):
    from lookupjax.sharding_report import report

    config = resolve(load_config(f"{root}/configs/quickstart_caption.py", TINY), data=False)
    frozen = report(Experiment(config, make_mesh(config.mesh)))
    config.frozen = ()
    free = report(Experiment(config, make_mesh(config.mesh)))

    def mib(text: str, part: str) -> float:
        return float(next(line for line in text.splitlines() if line.startswith(part)).split()[1])

    assert mib(frozen, "params") == mib(free, "params") and "frozen: " in frozen
    for part in ("opt_state", "ema"):
        assert mib(free, part) > 1.4 * mib(frozen, part)


def test_the_tokens_are_kept_and_used(trained):
    files = list((trained / "tokens").glob("*.npy"))
    rows = np.load(files[0])
    assert len(files) == 1 and rows.shape == (48, 16, 16) and np.isfinite(rows).all()


def test_results_captions_and_pictures(trained):
    results = json.loads((trained / "results.json").read_text())[""]
    assert {"nll", "accuracy", "captions/exact", "captions/cider", "captions/bleu4"} <= results.keys()
    rows = json.loads((trained / "evaluation/captions/captions_test[:20]_results.json").read_text())
    assert len(rows) == 20 and {type(row["image_id"]) for row in rows} == {int}
    assert all(isinstance(row["caption"], str) and row.keys() == {"image_id", "caption"} for row in rows)
    report = (trained / "report/report.md").read_text()
    assert (
        "| lookupvit | 16 |" in report and (trained / "report/lookupvit_samples.png").stat().st_size > 10_000
    )


def test_evaluate_again_from_a_moved_directory(trained, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(trained)
    capsys.readouterr()
    assert evaluate.main([f"--workdir={moved}", "--evaluator=captions", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)[""]
    stored = json.loads((trained / "results.json").read_text())[""]
    assert again["captions/exact"] == stored["captions/exact"]
    assert again["captions/cider"] == pytest.approx(stored["captions/cider"])


def test_predict_writes_captions(trained, tmp_path, capsys):
    import cv2

    image, bad = tmp_path / "a.png", tmp_path / "bad.png"
    cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
    bad.write_text("no image")
    assert predict.main([f"--workdir={trained}", "--beams=2", "--caption", str(image), str(bad)]) == 1
    out = capsys.readouterr()
    assert out.out.startswith(f"{image}: ") and f"error: {bad}: not an image" in out.err
    with pytest.raises(UserError, match="--caption needs a captioner"):
        predict.main([f"--workdir={trained / 'pretraining'}", "--caption", str(image)])


def test_attention_views_show_what_was_read_for_each_word(trained, tmp_path, capsys):
    image, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(np.arange(32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3)).save(image)
    assert attention_views.main([f"--workdir={trained}", str(image), f"--out={out}", "--layers=decoder"]) == 0
    data = json.loads(re.search(r"const DATA = (.*);\n", (out / "attention.html").read_text())[1])
    caption = data["titles"][0].removeprefix("a.png: ")
    views = {view["path"]: (view["asks"]["name"], view["answers"]["name"]) for view in data["views"]}
    assert views["decoder/blocks/0/attn"] == ("words", "words")
    assert views["decoder/blocks/0/cross"] == ("words", "compressed tokens")
    assert {path.name for path in out.glob("*.png")} == {"a_layers.png"} | (
        {"a_words.png"} if caption else set()
    )


@pytest.mark.parametrize("file, argument", [("lookupvit", "S/16,3x3,prefix"), ("vit", "B/16,384,tokens")])
def test_coco_configs(root, file, argument):
    path = f"{root}/configs/coco_captions/{file}.py"
    config = load_config(f"{path}:{argument}", [])
    run = Experiment(resolve(config, data=False), make_mesh(config.mesh))
    assert run.task.label_smoothing == 0.1 and run.abstract_model.decoder.form in ("cross", "prefix")
    assert config.steps == 2213 and config.schedule.warmup_steps == 111
    assert config.cache_tokens == ("tokens" in argument)
    names = named_leaves(run.abstract_state.opt_state)
    assert names and not any("encoder/" in name for name in names)
    small = load_config(f"{path}:{argument},smoke", [])
    assert small.model.encoder == f"{file}_mu" and small.data.name == "captioned_digits" and small.steps == 20
