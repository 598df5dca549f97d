"""The benchmark tool on the smallest models: what it counts is exact, what it times is only there."""

import json

import pytest

from lookupjax import benchmark
from lookupjax.errors import UserError


def test_forward_and_training_of_two_models(tmp_path, capsys):
    contenders = ["vit_mu", "lookupvit_mu@2x2,depth=1"]
    fast = ["--rounds=1", "--seconds=0", "--peak_side=64", "--size=32", "--batch=4"]
    assert benchmark.main([*contenders, *fast, "--mode", "forward", "train", f"--out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "benchmark.json").read_text())
    rows = {(r["contender"], r["mode"]): r for r in record["results"]}
    assert len(rows) == 4
    forward, train = rows["vit_mu", "forward"], rows["vit_mu", "train"]
    # two operations per product and a little element-wise work; three passes in training
    assert 2 * 4 * forward["gmacs"] < forward["xla_gflop"] < 3 * 4 * forward["gmacs"]
    assert 2 < train["xla_gflop"] / forward["xla_gflop"] < 4 and train["memory_mb"] > forward["memory_mb"]
    assert rows[contenders[1], "forward"]["gmacs"] < forward["gmacs"]
    assert all(r["images_per_second"]["median"] > 0 for r in rows.values())
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    assert "vs first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, complaint",
    [("vit_mu@2x2", "no compressed"), ("vit_mx", "did you mean"), ("vit_mu,gap", "key=value")],
)
def test_wrong_contenders(text, complaint):
    with pytest.raises(UserError, match=complaint):
        benchmark.main([text])
