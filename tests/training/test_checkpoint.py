"""Checkpoints across meshes, the best one kept, starting from another run's weights."""

import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax.config import apply_changes, default_config
from lookupjax.errors import UserError
from lookupjax.paths import named_leaves
from lookupjax.training.checkpoint import Checkpoints
from lookupjax.training.experiment import Experiment
from lookupjax.training.init import initialise, resize_table, table_grids
from lookupjax.training.sharding import make_mesh

TINY = dict(
    name="lookupvit_mu", dim=64, depth=2, pos_grid=(4, 4), num_classes=5, channels=1, compressed=(2, 2)
)


def experiment(mesh=(1, 1, 1), **changes):
    config = apply_changes(default_config(), {"model": TINY, "steps": 20, "batch_size": 16} | changes)
    shape = ConfigDict(dict(zip(("data", "fsdp", "model"), mesh)))
    return Experiment(config, make_mesh(shape, jax.devices()[: int(np.prod(mesh))]))


def options(**changes):
    return apply_changes(default_config(), {"checkpoint": changes}).checkpoint


def state_of(exp: Experiment, seed: int = 0):
    """Random numbers in the shapes and places of the state; made without compiling anything."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding), exp.abstract_state
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_restore_on_other_meshes_is_exact(tmp_path):
    """8 (FSDP) -> 1 -> 2x2x2: every array of the state the same, placed as the new mesh asks."""
    meshes = [experiment(mesh, ema=0.9) for mesh in ((1, 8, 1), (1, 1, 1), (2, 2, 2))]
    state = first = state_of(meshes[0])
    for step, exp in enumerate(meshes, start=1):
        with Checkpoints(tmp_path / "checkpoints", options()) as checkpoints:
            if step > 1:
                state, position = checkpoints.restore(exp.abstract_state)
                assert position == {"next_index": step - 1}
            assert_equal(state, first)
            shardings = jax.tree.map(lambda x: x.sharding, state)
            assert jax.tree.all(
                jax.tree.map(
                    lambda a, b, x: a.is_equivalent_to(b, x.ndim), shardings, exp.state_shardings, state
                )
            )
            checkpoints.save(step, state, {"next_index": step})


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
    exp = experiment()
    state = state_of(exp)
    kept = options(keep=2, best="eval/accuracy")
    with Checkpoints(tmp_path / "c", kept) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.7, 0.3, None, 0.5], start=1):
            figures = None if accuracy is None else {"eval/accuracy": accuracy, "eval/nll": 1.0}
            checkpoints.save(step, state, {"next_index": step}, figures)
        with pytest.raises(UserError, match="did you mean 'eval/accuracy2'"):
            checkpoints.save(6, state, {}, {"eval/accuracy2": 1.0})
    with Checkpoints(tmp_path / "c", kept) as checkpoints:
        assert checkpoints.steps == [2, 4, 5] and checkpoints.best_step == 2
        part = checkpoints.restore_model(exp.abstract_state.model_part(), "best")
        assert_equal(part["params"], state.params)
        with pytest.raises(UserError, match="no checkpoint '3'; it has the steps"):
            checkpoints.restore_model(exp.abstract_state.model_part(), "3")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(work directory with one checkpoint, its state)."""
    exp = experiment((1, 8, 1), ema=0.9)
    state = state_of(exp, seed=1)
    workdir = tmp_path_factory.mktemp("source")
    with Checkpoints(workdir / "checkpoints", options()) as checkpoints:
        checkpoints.save(7, state, {"next_index": 7})
    return workdir, state


def start_from(source, model=(), mesh=(2, 2, 2), **init):
    exp = experiment(mesh, model=TINY | dict(model), init=dict(path=str(source)) | init)
    before = state_of(exp)
    state, report = initialise(before, exp.config.init, exp.mesh, exp.abstract_model)
    return before, state, report, exp


def test_fine_tuning_loads_resizes_and_replaces(source):
    """More classes and a finer grid on another mesh: nothing else differs, and the average is taken."""
    workdir, theirs = source
    before, state, report, exp = start_from(workdir, dict(num_classes=7, pos_grid=(6, 8)))
    assert report.resized == ["pos_lookup 4x4x64 -> 6x8x64"]
    assert {name.split()[0] for name in report.replaced} == {
        f"head_{which}/{kind}" for which in "pl" for kind in ("kernel", "bias")
    }
    assert not report.missing + report.unexpected + report.skipped
    assert_equal(state.params["blocks"], theirs.ema["blocks"])
    assert_equal(state.params["head_p"], before.params["head_p"])
    assert_equal(state.opt_state, before.opt_state)
    assert jax.tree.map(lambda x: x.sharding, state.params) == exp.state_shardings.params
    assert any("pos_lookup 4x4x64 -> 6x8x64" in line for line in report.lines())


def test_patterns_choose_and_strictness_complains(source):
    workdir, theirs = source
    before, state, report, _ = start_from(workdir, include=("^blocks/", "^embed"), exclude=("/attn/",))
    assert_equal(state.params["blocks"][0]["mlp"], theirs.ema["blocks"][0]["mlp"])
    assert_equal(state.params["blocks"][0]["attn"], before.params["blocks"][0]["attn"])
    assert_equal(state.params["final_norm_p"], before.params["final_norm_p"])
    assert "final_norm_p/bias" in report.skipped
    with pytest.raises(UserError, match=r"init\.exclude: '/atn/' matches no parameter"):
        start_from(workdir, exclude=("/atn/",))
    with pytest.raises(UserError, match="blocks/2/"):  # a deeper model needs weights for its third block
        start_from(workdir, dict(depth=3))
    with pytest.raises(UserError, match="replaced: head_l/bias 5 -> 7"):
        start_from(workdir, dict(num_classes=7), strict=True)
    with pytest.raises(UserError, match="holds no checkpoint"):
        start_from(workdir / "nothing")


def test_a_part_of_the_model_starts_from_a_run_or_a_file(source, tmp_path):
    """The backbone of a probe, as `configs/probe.py` loads it."""
    workdir, theirs = source
    options = {k: v for k, v in TINY.items() if k not in ("name", "channels")}
    probe = dict(
        name="probe_mu", backbone="lookupvit_mu", backbone_options=options, num_classes=5, channels=1
    )
    changes = dict(model=probe, frozen=("^backbone/",))
    exp = experiment(**changes, init=dict(path=str(workdir), module="backbone"))
    before = state_of(exp)
    state, report = initialise(before, exp.config.init, exp.mesh, exp.abstract_model)
    assert_equal(state.params["backbone"], theirs.ema)
    assert_equal(state.params["pool"], before.params["pool"])
    assert not report.missing + report.unexpected + report.replaced

    names = {re.sub(r"^blocks/(\d+)/", r"block_\1/", n): x for n, x in named_leaves(theirs.ema).items()}
    names = {re.sub(r"_norm/norm/", "_norm/", n.replace("/cross/", "/")): x for n, x in names.items()}
    np.savez(tmp_path / "weights.npz", **jax.device_get(names))
    exp = experiment(**changes, init=dict(path=str(tmp_path / "weights.npz"), module="backbone"))
    state, report = initialise(before, exp.config.init, exp.mesh, exp.abstract_model)
    assert_equal(state.params["backbone"], theirs.ema)
    with pytest.raises(UserError, match="module='backbon' is no part"):
        wrong = exp.config.init.copy_and_resolve_references()
        wrong.module = "backbon"
        initialise(before, wrong, exp.mesh, exp.abstract_model)


def test_flat_position_tables_keep_the_class_token():
    table = np.arange(5 * 2, dtype=np.float32).reshape(5, 2)
    assert table_grids((5, 2), (10, 2)) == ((2, 2), (3, 3))
    assert table_grids((4, 2), (9, 2)) == ((2, 2), (3, 3))
    assert table_grids((5, 2), (11, 2)) is None and table_grids((5, 2), (10, 3)) is None
    resized = resize_table(jax.numpy.asarray(table), (2, 2), (3, 3))
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_allclose(resized[5], table[1:].mean(0))  # the middle of the new grid
