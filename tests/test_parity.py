"""Every stored reference fixture, through the same code as `python -m lookupjax.parity`."""

from pathlib import Path

import numpy as np
import pytest

from lookupjax import parity
from lookupjax.interop import lookupvit

FIXTURES = sorted((Path(__file__).parent / "parity").glob("*.npz"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
def test_fixture(path):
    rows, unused = parity.check(path)
    assert rows and not unused
    assert [(r.key, r.relative, r.problem) for r in rows if not r.passed] == []


@pytest.mark.parametrize(
    "name, impl",
    [
        *((name, impl) for name in ("image_default", "grads") for impl in ("plain", "absorbed", "fused")),
        *(("image_options", impl) for impl in ("plain", "absorbed")),  # its norm of heads has no kernel
    ],
)
def test_every_form_of_the_cross_attention_passes(name, impl, monkeypatch):
    """The references' outputs and gradients, whichever form "auto" would have taken."""

    class InThisForm(lookupvit.LookupViT):
        def __init__(self, **options):
            super().__init__(cross_impl=impl, **options)

    monkeypatch.setattr(lookupvit, "LookupViT", InThisForm)
    rows, _ = parity.check(Path(__file__).parent / "parity" / f"lookupvit__{name}.npz")
    # the gradient of a softmax attention's key bias is zero in exact arithmetic: what is compared is rounding
    wrong = [r for r in rows if not r.passed and not (r.key.endswith("/attn/k/bias") and r.relative < 1e-4)]
    assert rows and wrong == []


def tampered(path: Path, to: Path, **changes) -> Path:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file) | changes
    np.savez(to, **arrays)
    return to


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"out/logits": np.zeros((2, 10), np.float32)}, "FAIL out/logits"),
        ({"out/unheard_of": np.zeros(3, np.float32)}, "not covered by the adapter"),
        ({"param/extra/bias": np.zeros(3, np.float32)}, "parameter extra/bias is not used"),
        ({"param/embed/bias": np.zeros(3, np.float32)}, "embed/bias has shape (32,)"),
    ],
)
def test_failures_are_seen(changes, complaint, tmp_path, capsys):
    source = Path(__file__).parent / "parity" / "lookupvit__image_default.npz"
    path = tampered(source, tmp_path / "lookupvit__tampered.npz", **changes)
    assert parity.main([str(path)]) == 1
    assert complaint in capsys.readouterr().out


def test_unknown_family_and_bad_files(tmp_path, capsys):
    (tmp_path / "nosuch__a.npz").write_bytes(b"no zip")
    source = Path(__file__).parent / "parity" / "lookupvit__resize.npz"
    other = tampered(source, tmp_path / "lookupvitt__a.npz")
    assert parity.main([str(tmp_path / "nosuch__a.npz"), str(other), str(tmp_path / "missing.npz")]) == 1
    text = capsys.readouterr().out
    assert "is not a fixture" in text and "did you mean 'lookupvit'" in text and "no such file" in text
