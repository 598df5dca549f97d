"""The step, on a tiny model: what accumulation, freezing, EMA, meshes and seeds may change."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax.config import apply_changes, default_config
from lookupjax.training.experiment import Experiment
from lookupjax.training.sharding import global_batch, make_mesh
from lookupjax.training.step import make_train_step

TINY = dict(
    name="lookupvit_mu", dim=16, depth=2, pos_grid=(4, 4), num_classes=5, channels=1, compressed=(2, 2)
)


def experiment(mesh=(1, 1, 1), **changes):
    config = apply_changes(default_config(), {"model": TINY, "steps": 20, "batch_size": 16} | changes)
    shape = ConfigDict(dict(zip(("data", "fsdp", "model"), mesh)))
    return Experiment(config, make_mesh(shape, jax.devices()[: int(np.prod(mesh))]))


@cache
def images():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(16, 16, 16, 1)).astype(np.float32),
        "label": rng.integers(0, 5, 16).astype(np.int32),
    }


def run(run: Experiment, steps: int = 2, call=(("compressed", (2, 2)),)):
    config = run.config
    step = make_train_step(
        run.graphdef,
        run.task,
        run.optimizer,
        run.schedule,
        seed=config.seed,
        frozen=config.frozen,
        accumulate=config.accumulate,
        ema=config.ema,
        layout=run.layout,
    )
    step = jax.jit(step, static_argnums=2, out_shardings=(run.state_shardings, None))
    state, losses = run.create_state(), []
    for _ in range(steps):
        state, metrics = step(state, global_batch(images(), run.mesh), call)
        losses.append(float(metrics["loss"]))
    return state, losses


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_loss_falls_and_first_loss_is_log_classes():
    _, losses = run(experiment(optimizer=dict(learning_rate=1e-2)), steps=15)
    assert losses[0] == pytest.approx(np.log(5), abs=1e-5)  # heads start at zero
    assert losses[-1] < 0.8 * losses[0]


def test_accumulation_equals_the_big_batch():
    whole, _ = run(experiment())
    parts, _ = run(experiment(accumulate=4))
    assert_close(whole.params, parts.params, atol=2e-5)


def test_randomness_is_a_function_of_seed_and_step():
    noisy = {"model": TINY | dict(dropout=0.3, drop_path=0.3)}
    first, a = run(experiment(**noisy))
    again, b = run(experiment(**noisy))
    _, c = run(experiment(seed=1, **noisy))
    assert a == b and a != c
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


def test_frozen_parameters_stay_and_have_no_optimizer_state():
    exp = experiment(frozen=("^embed/", "^blocks/0/"))
    state, _ = run(exp)
    before = exp.create_state()
    jax.tree.map(np.testing.assert_array_equal, state.params["embed"], before.params["embed"])
    jax.tree.map(np.testing.assert_array_equal, state.params["blocks"][0], before.params["blocks"][0])
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    trained = [x for k, v in before.params.items() if k != "embed" for x in jax.tree.leaves(v)]
    frozen_block = jax.tree.leaves(before.params["blocks"][0])
    assert len(moments) == 2 * (len(trained) - len(frozen_block))


def test_ema_follows_the_parameters():
    state, _ = run(experiment(ema=0.999), steps=1)
    before = experiment().create_state()
    expected = jax.tree.map(lambda old, new: old + 0.9 * (new - old), before.params, state.params)
    assert_close(state.ema, expected)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_every_mesh_computes_the_same(mesh):
    changes = {"ema": 0.9, "model": TINY | dict(dim=64)}
    single, losses = run(experiment(**changes), steps=3)
    sharded, same = run(experiment(mesh, **changes), steps=3)
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    assert_close(single.params, jax.device_get(sharded.params), rtol=1e-3, atol=1e-4)


def test_fsdp_splits_parameters_and_moments():
    exp = experiment((1, 8, 1), model=TINY | dict(dim=128, depth=1), ema=0.9)
    state = exp.create_state()
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    local = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert local <= (1 / 8 + 0.05) * whole


@pytest.mark.parametrize(
    "options", [dict(remat="block"), dict(remat="dots"), dict(scan=True), dict(scan=True, remat="block")]
)
def test_remat_and_scan_do_not_change_the_step(options):
    plain, losses = run(experiment(model=TINY | dict(drop_path=0.2)))
    other, same = run(experiment(model=TINY | dict(drop_path=0.2) | options))
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    assert_close(plain.params, other.params, atol=2e-5)


def test_bfloat16_computes_near_float32_with_float32_parameters():
    _, losses = run(experiment())
    state, half = run(experiment(dtype="bfloat16"))
    np.testing.assert_allclose(losses, half, rtol=2e-2)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
