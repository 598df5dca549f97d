"""Robust accuracy: clean accuracy at eps 0, never rising with eps."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax.config import default_config
from lookupjax.errors import UserError
from lookupjax.evaluation import create_evaluators, run_evaluators
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh
from lookupjax.training.state import merge_model


def test_robust_accuracy(tmp_path):
    config = default_config()
    config.model = ConfigDict(dict(name="vit_mu", patch=(4, 4), dim=16, pos_grid=(2, 2), pos_init=0.5))
    config.data.channels, config.data.dir = 1, str(tmp_path)
    config.data.eval_split, config.eval_batch_size = "test[:77]", 40
    experiment = Experiment(resolve(config), make_mesh(config.mesh))
    params = experiment.create_state().params
    context = experiment.context(experiment.calls(), None)
    kernel = 10.0 * jax.random.normal(jax.random.key(0), params["head"]["kernel"].shape)
    images = np.concatenate([batch["image"] for batch in context.batches()])
    mean = jax.jit(merge_model(experiment.graphdef, params, {}))(images)["features"].mean(0)
    params["head"] = {"kernel": kernel, "bias": -mean @ kernel}  # logits that differ between images
    eps = (0.0, 4 / 255, 16 / 255, 64 / 255)
    specs = {
        "robust": {"type": "robust", "eps": eps},
        "fgsm": {"type": "robust", "eps": eps, "steps": 1, "step": 1.0, "random_start": False},
    }
    results = run_evaluators(create_evaluators(specs, context), params, {})[""]
    for name in specs:
        curve = [results[f"{name}/accuracy_eps{e * 255:g}"] for e in eps]
        assert curve[0] == results["accuracy"] and results[f"{name}/examples"] == 77
        assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0]

    with pytest.raises(UserError, match="needs a transform 'normalize'"):
        config.data.eval_transforms = ()
        experiment = Experiment(resolve(config), make_mesh(config.mesh))
        create_evaluators(specs, experiment.context(experiment.calls(), None))
