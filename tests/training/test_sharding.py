"""Sharding tables and compilation ahead of time, on fake and absent devices."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax import aot, sharding_report
from lookupjax.analysis.hlo import array_bytes, collectives, instructions, traffic
from lookupjax.config import apply_changes, default_config, load_config
from lookupjax.errors import UserError
from lookupjax.training.experiment import Experiment
from lookupjax.training.program import batch_shapes, trace_step
from lookupjax.training.sharding import batch_share, make_mesh, tensor_rules

TINY = dict(name="lookupvit_mu", dim=64, depth=1, pos_grid=(4, 4), num_classes=5, channels=1)
RULE = (r"^embed/kernel$", -1)


@pytest.fixture
def here(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root)
    monkeypatch.setenv("LOOKUPJAX_DATA", str(tmp_path))


def experiment(mesh, **changes):
    config = apply_changes(default_config(), {"model": TINY, "steps": 20, "batch_size": 16} | changes)
    shape = ConfigDict(dict(zip(("data", "fsdp", "model"), mesh)))
    return Experiment(config, make_mesh(shape, jax.devices()[: int(np.prod(mesh))]))


def test_fsdp_leaves_an_eighth_on_each_device():
    exp = experiment((1, 8, 1), model=TINY | dict(dim=128), ema=0.9)
    _, whole, local = sharding_report.totals(exp.abstract_state)[-1]
    assert local <= (1 / 8 + 0.05) * whole


def test_the_report_shows_partitions_and_what_stays_whole():
    text = sharding_report.report(experiment((2, 2, 2), tensor_rules=(RULE,)))
    rows = {line.split()[0]: line for line in text.splitlines() if line and not line.startswith(" ")}
    assert "(fsdp, model)" in rows["blocks/0/mlp/fc1/kernel"] and rows["blocks/0/mlp/fc1/kernel"].endswith(
        "16,384"
    )
    assert "(model, fsdp)" in rows["blocks/0/mlp/fc2/kernel"]
    assert "(-, -, -, model)" in rows["embed/kernel"]
    assert "whole" in rows["head_p/kernel"]
    assert "tensor rules that found nothing: none" in text


def test_rules_that_match_nothing():
    """One's own are errors; ours may go unused unless the model axis would split nothing at all."""
    with pytest.raises(UserError, match="tensor_rules: 'embd' matches no parameter"):
        _ = experiment((8, 1, 1), tensor_rules=(("embd", -1),)).abstract_state
    names = ["stem/kernel", "norm/scale"]
    mesh = experiment((1, 1, 8)).mesh
    with pytest.raises(UserError, match="would split no parameter"):
        tensor_rules((), names, mesh)
    assert tensor_rules((("stem", -1),), names, mesh)[0] == ("stem", -1)


def test_fsdp_splits_activations_over_the_batch():
    """No device holds the tokens of the whole batch, whatever way XLA propagates shardings."""
    exp = experiment((1, 8, 1), model=TINY | dict(depth=2, channels=3, remat="block"), batch_size=48)
    program = trace_step(exp, batch_shapes(exp, (16, 16)), ()).lower().compile()
    shapes = re.findall(r"\b\w+\[([\d,]+)\]", program.as_text())
    examples = {int(shape.split(",")[0]) for shape in shapes if shape.endswith(",16,64")}
    assert 6 in examples and 48 not in examples


def test_joined_keys_and_values_need_no_neighbours_part():
    """Tensor parallel LookupViT sums over devices; it moves no halves of joined products between them."""
    exp = experiment((1, 1, 2), model=TINY | dict(channels=3))
    program = trace_step(exp, batch_shapes(exp, (16, 16)), ()).lower().compile()
    assert set(collectives(instructions(program.as_text()))) <= {"all-reduce", "all-gather"}


def test_shapes_of_a_batch_of_clips_follow_from_the_transforms(here):
    """The dataset is not here; the frames are those drawn, the size that of the last crop."""
    config = load_config("configs/kinetics/vivit.py", ["--config.model.num_classes=400"])
    exp = Experiment(config, make_mesh(config.mesh, jax.devices()))
    assert batch_shapes(exp)["image"].shape == (64, 32, 224, 224, 3)


def test_one_process_reads_the_whole_batch():
    assert batch_share(experiment((2, 2, 2)).mesh) == (0, 1)


HLO = """
HloModule jit_step

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ar = (f32[4,4]{1,0}, /*index=1*/f32[4,4]{1,0}) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %ar)
}

%condition (arg: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4,4]) -> f32[8,4] {
  %p = f32[4,4]{1,0} parameter(0)
  %ag = (f32[4,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), dimensions={0}
  %agd = f32[8,4]{1,0} all-gather-done(%ag)
  %w = (s32[], f32[8,4]{1,0}) while(%init), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%w), index=1
}
"""


KNOWN = 'backend_config={"known_trip_count":{"n":"3"}}'


@pytest.mark.parametrize("trips", [KNOWN, "condition=%condition"], ids=["cpu", "tpu"])
def test_collectives_in_loops_count_as_often_as_they_run(trips):
    found = collectives(instructions(HLO.replace(KNOWN, trips)))
    assert found == {"all-reduce": (3, 3 * 128), "all-gather": (1, 128)}
    assert array_bytes("(f32[8,128]{1,0}, bf16[4], pred[], u8[3])") == (4096, 8, 1, 3)


def test_traffic_counts_every_run_and_nothing_inside_a_fusion():
    def moved(f):
        x = jnp.zeros((64, 64))
        return traffic(instructions(jax.jit(f).lower(x, x).compile().as_text())) / x.nbytes

    def loop(x, y):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, length=50)[0]

    assert moved(lambda x, y: x @ y) == 3 and moved(lambda x, y: jnp.tanh(x) * y + 1.0) == 3
    assert moved(lambda x, y: jnp.tanh(x @ y)) in (3, 5)  # one instruction or two
    assert 50 * 3 <= moved(loop) <= 50 * 8  # with what the loop copies


def arguments(*more):
    fixed = ["--config=configs/quickstart.py", "--config.model.depth=1", "--config.grids=((2,2),)"]
    return [*fixed, "--config.mesh.fsdp=4", *more]


def test_ahead_of_time_for_eight_cpus(here, capsys):
    """The same collectives as XLA really runs; too small a memory is status 1 and names buffers."""
    status = aot.main(arguments("--platform=cpu", "--devices=8", "--memory=0.0001"))
    text = capsys.readouterr().out
    assert status == 1 and "does not fit; largest buffers:" in text and "jit(train_step)" in text
    assert "all-gather" in text and "on 8 x cpu" in text and "mesh data x fsdp x model = 2x4x1" in text


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (extra: tpu)")
def test_ahead_of_time_for_a_tpu(here, capsys):
    assert aot.main(arguments("--topology=v5e:2x2")) == 0
    text = capsys.readouterr().out
    assert "on 4 x TPU v5 lite" in text and "of 16.00 GiB" in text and "floor of the step time" in text
    assert len(aot.topology_devices("v4:2x2x1")) == 4  # its two cores are one device


@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="no CUDA plugin (extra: cuda)")
def test_ahead_of_time_for_gpus(here, capsys):
    assert aot.main(arguments("--topology=h100:8")) == 0
    text = capsys.readouterr().out
    assert "on 8 x NVIDIA H100" in text and "GiB" in text and "floor of the step time" in text
    assert "all-gather" in text and "memory traffic             0.00" not in text
    assert len(aot.topology_devices("h100:16")) == 16


def test_what_does_not_fit_is_named():
    """The TPU compiler's message of libtpu 0.0.42 has no buffers; ours come from the traced program."""
    said = "Ran out of memory on HBM, the total memory required for HLO temporaries (47.72G) exceeds ..."
    assert aot.out_of_memory(f"RESOURCE_EXHAUSTED: {said}\nmore") == said
    assert aot.out_of_memory("INVALID_ARGUMENT: no such option") is None

    def loop(x):
        with jax.named_scope("layer"):
            return jax.lax.scan(lambda c, _: (c + 1, jnp.tanh(c)), x, length=4)

    rows = aot.largest_values(jax.jit(loop).trace(jnp.zeros((32, 512, 64))), batch=32, parts=8)
    assert rows[0].split() == ["2.0", "MiB", "float32[4,32,512,64]", "layer/scan"]
    assert rows[-1].split()[-1] == "layer/scan/tanh" and rows[-1].split()[0] == "0.5"


def test_bad_topologies(here):
    with pytest.raises(UserError, match="either --topology"):
        aot.main(arguments())
    for wrong in ("v99:2x2", "v5e"):
        with pytest.raises(UserError, match="a chip of"):
            aot.main(arguments(f"--topology={wrong}"))
    for wrong in ("h100:0", "h100:12", "h100:2x2"):
        with pytest.raises(UserError, match="from 1 to 8 or a multiple of 8"):
            aot.main(arguments(f"--topology={wrong}"))
    if not importlib.util.find_spec("jax_cuda13_plugin"):
        with pytest.raises(UserError, match="needs jax_cuda13_plugin: pip install"):
            aot.main(arguments("--topology=h100:8"))
    if not importlib.util.find_spec("libtpu"):
        with pytest.raises(UserError, match="needs libtpu"):
            aot.main(arguments("--topology=v5e:2x2"))
