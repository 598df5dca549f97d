"""The toy of lesions in clutter, and how experiments/medusa_lesions counts and draws where a model looks."""

import importlib

import cv2
import numpy as np
import pytest

from lookupjax.data.builders import lesions
from lookupjax.data.sources import dataset_info, open_source


def test_only_the_lesion_tells_its_kind():
    scans = {}
    for kind in lesions.KINDS:
        scans[kind], (top, left, bottom, right) = lesions.draw(kind, np.random.default_rng(7))
    first, *others = (scan.astype(int) for scan in scans.values())
    inside = np.zeros_like(first, bool)
    inside[top:bottom, left:right] = True
    assert inside.sum() == lesions.DIAMETER**2
    for other in others:
        assert (first == other)[~inside].all() and (first != other)[inside].mean() > 0.4
        assert abs(first.mean() - other.mean()) < 0.2
    again, _ = lesions.draw("flat", np.random.default_rng(7))
    np.testing.assert_array_equal(again, scans["flat"])


def test_the_dataset_balances_the_kinds_and_keeps_the_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr(lesions, "SCANS", {"train": 12, "test": 8})
    info = dataset_info("lesions", str(tmp_path))
    assert info.splits == {"train": 12, "test": 8} and info.class_names == tuple(lesions.KINDS)
    source = open_source("lesions", "test", str(tmp_path))
    examples = [source[i] for i in range(8)]
    assert sorted(int(e["label"]) for e in examples) == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = [lesions.draw(k, np.random.default_rng(12 + i)) for i, k in enumerate(2 * list(lesions.KINDS))]
    for e in examples:
        scan = cv2.imdecode(np.frombuffer(e["image"], np.uint8), cv2.IMREAD_GRAYSCALE)
        same = [box for pixels, box in expected if np.array_equal(pixels, scan)]
        np.testing.assert_array_equal(e["lesion"], same[0])


@pytest.fixture
def gates(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "experiments" / "medusa_lesions"))
    return importlib.import_module("gates")


def test_the_largest_gate_counts_where_its_cell_touches_the_box(gates, tmp_path):
    boxes = np.array([[0, 0, 8, 8], [6, 6, 14, 14]])  # one cell of four, all four
    gate = np.zeros((2, 2, 2))
    gate[:, 1, 1] = 1.0
    assert gates.on_lesion(gate, boxes, 16) == (0.5, 0.625)
    gate[0, 0, 0] = 2.0
    assert gates.on_lesion(gate, boxes, 16) == (1.0, 0.625)
    scans, path = np.random.default_rng(0).normal(size=(2, 16, 16)), tmp_path / "gates.png"
    gates.gate_picture(scans, boxes, [gate, np.kron(gate, np.ones((2, 2)))], ["one", "two"], path)
    assert path.stat().st_size > 10_000
