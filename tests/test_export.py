"""Exported models: equal to the checkpoint, and readable without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax import create_model, export
from lookupjax.config import apply_changes, default_config
from lookupjax.errors import UserError
from lookupjax.layers.reparam import DilatedReparam
from lookupjax.training.checkpoint import Checkpoints
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh
from lookupjax.workdir import open_workdir
from tests.models.filled import filled

ROOT = Path(__file__).parent.parent
ALONE = "import sys; sys.modules['lookupjax'] = None\n"  # importing it fails


def trained(workdir: Path, name: str, **changes) -> None:
    """A work directory with a checkpoint, without training."""
    model = dict(name=name) | changes.pop("model", {})
    config = resolve(apply_changes(default_config(), dict(model=model) | changes))
    experiment = Experiment(config, make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1))))
    shapes = experiment.abstract_state
    random = np.random.default_rng(0)

    def value(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        return jax.device_put(jnp.asarray(random.uniform(0.05, 0.3, leaf.shape), leaf.dtype), leaf.sharding)

    with (
        open_workdir(workdir, config, override=False),
        Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints,
    ):
        checkpoints.save(0, jax.tree.map(value, shapes), {"next_index": 0})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    size = dict(patch=(2, 2), pos_grid=(4, 4), compressed=(2, 2), dim=16, depth=1, cross_impl="fused")
    trained(workdir, "lookupvit_mu", model=size, grids=((2, 2), (3, 3)))
    return workdir


def code_of(page: str, heading: str) -> str:
    """The first Python block under a heading of a page of docs."""
    text = (ROOT / "docs" / page).read_text().split(heading, 1)[1]
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def run_alone(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", ALONE + code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stablehlo_is_read_as_the_docs_say(run, capsys):
    export.main([f"--workdir={run}", "--format=stablehlo"])
    assert "error, real" in capsys.readouterr().out
    out = run / "export/stablehlo"
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["programs"]) == {"2x2", "3x3"} and len(manifest["labels"]) == 10
    assert all(export.described(out / p["file"]) == p for p in manifest["programs"].values())
    cv2.imwrite(str(run / "IMAGE.png"), np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    code = code_of("export.md", "## StableHLO").replace("runs/quickstart/", "")
    assert len(code.strip().splitlines()) <= 12
    said = run_alone(code, run).strip()
    source = export.load_source(run)
    pixels = cv2.imread(str(run / "IMAGE.png"), cv2.IMREAD_COLOR_RGB).astype(np.float32) / 255
    image = (pixels[None] - np.float32(0.5)) / np.float32(0.5)
    logits = source.outputs(source.model, jnp.asarray(image), source.calls["3x3"])["logits"]
    assert said == manifest["labels"][int(logits.argmax())]


def test_safetensors_build_the_model_again(run):
    export.main([f"--workdir={run}", "--format=safetensors"])
    out = run / "export/safetensors"
    options = json.loads((out / "config.json").read_text(), object_hook=export.as_tuples)
    model = create_model(options.pop("name"), weights=out / "weights.safetensors", **options)
    expected = export.named_weights(export.load_source(run).model)[0]
    for name, value in export.named_weights(model)[0].items():
        np.testing.assert_array_equal(value, expected[name])
    with pytest.raises(UserError, match="missing"):
        create_model("lookupvit_mu", weights=out / "weights.safetensors")


def test_onnx_is_read_as_the_docs_say(run):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    export.main([f"--workdir={run}", "--format=onnx"])
    code = code_of("export.md", "## ONNX").replace("runs/quickstart/", "")
    cv2.imwrite(str(run / "IMAGE.png"), np.zeros((8, 8, 3), np.uint8))
    assert run_alone(code, run).strip() in "0123456789"


def test_what_is_not_equal_is_refused(run):
    source = export.load_source(run)
    program = export.compiled(source, source.model, source.calls["2x2"])

    def wrong(images):
        return {name: value + 1e-2 for name, value in program(images).items()}

    with pytest.raises(UserError, match="the exported 2x2 differs from the checkpoint by"):
        export.check(source, {"2x2": wrong, "3x3": wrong}, 0, "wrong")


def test_branches_are_merged_in_programs():
    """What programs store of an OverLoCK has one kernel where training has several."""
    model = filled(lambda: create_model("overlock_mu", num_classes=3))
    merged = export.merge_branches(model)
    kinds = [m for _, m in export.nnx.iter_modules(merged) if isinstance(m, DilatedReparam)]
    assert kinds and all(m.conv is not None for m in kinds)
    assert sum(v.size for v in export.named_weights(merged)[0].values()) < sum(
        v.size for v in export.named_weights(model)[0].values()
    )


def test_user_errors(run, tmp_path):
    with pytest.raises(UserError, match="is not a work directory"):
        export.main([f"--workdir={tmp_path}", "--format=stablehlo"])
