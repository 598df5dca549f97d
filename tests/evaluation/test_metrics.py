"""Calibration, AUPR, mCE and the probe against scikit-learn and cases worked by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score

from lookupjax.evaluation.fewshot import BIAS, choose_shots, fit
from lookupjax.evaluation.metrics import (
    ALEXNET_ERRORS,
    average_precision,
    corruption_errors,
    reliability,
)


def test_calibration_by_hand():
    """Bins (0, .25], (.25, .5], ...: two examples of confidence .25 and one of .5, .75 and 1."""
    table = reliability(np.array([0.25, 0.25, 0.5, 0.75, 1.0]), np.array([0.0, 1.0, 0.0, 1.0, 1.0]), bins=4)
    assert table.examples.tolist() == [2, 1, 1, 1]
    assert table.accuracy.tolist() == [0.5, 0.0, 1.0, 1.0]
    assert table.error == pytest.approx((2 * 0.25 + 0.5 + 0.25 + 0.0) / 5)


def test_calibration_against_scikit_learn():
    random = np.random.default_rng(0)
    confidence = random.beta(5, 2, 5000)
    correct = (random.random(5000) < confidence**2).astype(float)
    table = reliability(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    filled = table.examples > 0
    np.testing.assert_allclose(table.accuracy[filled], accuracy)
    np.testing.assert_allclose(table.confidence[filled], mean)
    weights = table.examples[filled] / 5000
    assert table.error == pytest.approx((weights * np.abs(accuracy - mean)).sum())


@pytest.mark.parametrize("ties", [False, True])
def test_aupr_against_scikit_learn(ties):
    random = np.random.default_rng(1)
    positive = random.random(2000) < 0.2
    score = random.normal(size=2000) + positive
    score = np.round(score, 1) if ties else score
    assert average_precision(score, positive) == pytest.approx(average_precision_score(positive, score))
    # by hand: positives at ranks 1 and 3 of 4
    by_hand = average_precision(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert by_hand == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_mce_by_hand():
    severities = (1, 2, 3, 4, 5)
    errors = {name: {s: error * s / 3 for s in severities} for name, error in ALEXNET_ERRORS.items()}
    figures = corruption_errors(errors | {"spatter": dict.fromkeys(severities, 1.0)})
    assert figures["mce"] == pytest.approx(100.0)  # a model as bad as AlexNet
    assert "ce/spatter" not in figures and figures["ce/fog"] == pytest.approx(100.0)
    errors["fog"] = dict.fromkeys(severities, 0.0)
    assert corruption_errors(errors)["mce"] == pytest.approx(100.0 * 14 / 15)
    del errors["fog"]
    assert "mce" not in corruption_errors(errors)
    # ResNet-50 of the paper's table 1: errors give the CEs printed there, and mCE 76.7
    ces = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
    table = {n: {1: ce / 100 * a} for (n, a), ce in zip(ALEXNET_ERRORS.items(), ces)}
    assert corruption_errors(table)["mce"] == pytest.approx(76.7, abs=0.3)


@pytest.mark.parametrize("examples", [12, 200])  # fewer and more than the features
def test_the_probe_is_ridge_regression(examples):
    random = np.random.default_rng(2)
    x, y = random.normal(size=(examples, 30)), random.integers(0, 4, examples)
    x_test, y_test = random.normal(size=(50, 30)), random.integers(0, 4, 50)
    probe = fit(x, y, 4)
    mean, std = x.mean(0), x.std(0) + 1e-5

    def padded(v):
        return np.pad((v - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)

    for l2 in (0.01, 8.0, 1024.0):
        ridge = Ridge(alpha=l2, fit_intercept=False, solver="svd")
        ridge.fit(padded(x), 2.0 * np.eye(4)[y] - 1.0)
        weights = (probe.left / (probe.eigenvalues + l2)[None]) @ probe.right
        np.testing.assert_allclose(weights, ridge.coef_.T, rtol=1e-5, atol=1e-8)
        hits = ridge.predict(padded(x_test)).argmax(-1) == y_test
        assert probe.accuracy(x_test, y_test, l2) == pytest.approx(hits.mean())


def test_shots_per_class():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 7)
    chosen = choose_shots(labels, 3, 5, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 5] and len(set(chosen)) == 13
