"""The benchmark tool on the smallest models: what it counts is exact, what it times is only there."""

import json
import sys

import pytest

from lookupjax import benchmark
from lookupjax.analysis import peer
from lookupjax.errors import UserError

FAKE_WORKER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    ready = {"params": 86567656, "memory_mb": None}
    print(json.dumps(ready if "prepare" in request else {"calls": 3, "seconds": 1.5}), flush=True)
"""


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


def test_a_peer_is_timed_in_its_own_process_and_training_reads_the_pipeline(tmp_path, monkeypatch, capsys):
    (tmp_path / "worker.py").write_text(FAKE_WORKER)
    monkeypatch.setattr(peer, "WORKER", tmp_path / "worker.py")
    fast = ["--rounds=1", "--seconds=0", "--peak_side=64", "--size=32", "--batch=4", f"--out={tmp_path}"]
    timm = ["--peer=timm", f"--peer_python={sys.executable}", "--peer_forms", "eager"]
    pipeline = ["--mode", "forward", "end_to_end", "--pipeline=configs/quickstart.py"]
    assert benchmark.main(["vit_mu,channels=1", *fast, *timm, *pipeline]) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["results"]
    forward, theirs, fed = rows
    assert theirs["images_per_second"]["median"] == 3 * 4 / 1.5  # calls x batch / seconds
    assert theirs["gmacs"] == pytest.approx(0.4286, rel=1e-3)  # 4 patches and the class token
    assert theirs["xla_gflop"] is None
    assert fed["mode"] == "end_to_end" and fed["xla_gflop"] > 2 * forward["xla_gflop"]
    assert "timm vit_base_patch16_224 eager" in capsys.readouterr().out


def test_a_worker_that_dies_is_named(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(peer, "WORKER", tmp_path / "worker.py")
    with pytest.raises(UserError, match="needs PyTorch and timm"):
        peer.Peer(sys.executable).ask(run="x", seconds=0.0)
