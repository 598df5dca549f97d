"""Budgeted early exit: thresholds, the evaluator, and batches whose results do not change by shrinking."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lookupjax.analysis.batched_exit import BatchedExits
from lookupjax.analysis.early_exit import exit_shares, exit_taken, find_thresholds, within_budget
from lookupjax.config import default_config
from lookupjax.evaluation import create_evaluators, run_evaluators
from lookupjax.layers.rngs import Keys
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh
from lookupjax.training.state import split_model
from tests.models.filled import filled


def test_shares_and_thresholds():
    shares = exit_shares(4)
    assert shares.shape == (33, 4)
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-6)
    assert (np.diff(shares[:, 0]) <= 0).all() and (np.diff(shares[:, 3]) >= 0).all()
    confidence = np.random.default_rng(0).random((4, 1000), np.float32)
    limits = find_thresholds(confidence, shares[10])
    counts = np.bincount(exit_taken(confidence, limits), minlength=4)
    np.testing.assert_allclose(counts / 1000, shares[10], atol=2e-3)


def test_a_budget_takes_the_most_accurate_row_it_can_pay():
    assert within_budget([1.0, 2.0, 3.0, 4.0], [0.5, 0.8, 0.7, 0.9], 3.5) == 1
    assert within_budget([1.0, 2.0], [0.5, 0.8], 0.5) == 0


def test_evaluator(tmp_path):
    config = default_config()
    config.model = ConfigDict(dict(name="dynperceiver_mu"))
    config.task = ConfigDict(dict(name="early_exit"))
    config.data.channels, config.data.dir = 1, str(tmp_path)
    config.data.eval_split, config.eval_batch_size = "test[:80]", 40
    config.data.eval_transforms = (dict(name="resize", size=(32, 32)), dict(name="normalize"))
    experiment = Experiment(resolve(config), make_mesh(config.mesh))
    _, params, stats = split_model(filled(lambda: experiment.make_model(Keys(0))))
    context = experiment.context(experiment.calls(), tmp_path / "pictures")
    specs = {"budget": {"type": "budget", "budgets": (0.6,), "measure": 16}}
    results = run_evaluators(create_evaluators(specs, context), params, stats)[""]
    assert results["budget/examples"] == 40 and results["budget/budget_60/images_per_s"] > 0
    assert results["budget/budget_60/gmacs"] < results["budget/whole/gmacs"]
    assert {p.name for p in (tmp_path / "pictures" / "budget").iterdir()} == {"curve.md", "curve.png"}


class Ladder(nnx.Module):
    """Four exits, each a linear layer after one more tanh: cheap, but of the form that exits are run in."""

    def __init__(self):
        draws = jax.random.normal(jax.random.key(0), (4, 12, 12))
        self.steps = nnx.Param(draws)
        self.heads = nnx.Param(3.0 * draws[:, :, :5])

    def run_segment(self, exit, carry, *, rngs=None):
        x = carry[0].reshape(carry[0].shape[0], 12) if exit == 0 else carry[0]
        x = jnp.tanh(x @ self.steps[...][exit])
        return x @ self.heads[...][exit], (x,)


def test_batched_exits_are_those_of_one_image_at_a_time():
    """77 images in batches of 16: every one leaves where its own confidences say, with that prediction."""
    model, images = Ladder(), np.random.default_rng(0).normal(size=(77, 2, 2, 3)).astype(np.float32)
    carry, logits = (images,), []
    for exit in range(4):
        out, carry = model.run_segment(exit, carry)
        logits.append(jax.nn.softmax(out))
    probabilities = np.stack(logits)
    confidence = probabilities.max(-1)
    limits = find_thresholds(confidence, np.float32([0.3, 0.3, 0.2, 0.2])) - np.float32(1e-6)
    predicted, taken = BatchedExits(model, limits, 16)(images)
    np.testing.assert_array_equal(taken, exit_taken(confidence, limits))
    np.testing.assert_array_equal(predicted, probabilities.argmax(-1)[taken, np.arange(77)])
    assert set(taken) == {0, 1, 2, 3}
