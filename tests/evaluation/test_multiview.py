"""Several views of a video: each video counted once, the average computed again from what was saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lookupjax.config import default_config
from lookupjax.data.loader import EvalBatches
from lookupjax.data.transforms import Normalize
from lookupjax.errors import UserError
from lookupjax.evaluation import create_evaluators, run_evaluators
from lookupjax.evaluation.multiview import average
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.sharding import make_mesh

COUNT, VIEWS = 21, 6  # no multiple of the batch; two clips, three crops


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment on moving digits and parameters whose heads are not zero."""
    config = default_config()
    config.model = ConfigDict(dict(name="lookupvit_video_mu", dim=16, depth=1, compressed=(2, 2, 2)))
    config.data.update(dict(name="moving_digits", channels=1, dir=str(tmp_path_factory.mktemp("data"))))
    config.data.eval_transforms = (
        dict(name="split_frames", frames=8),
        dict(name="even_clips", frames=4, stride=2),
        dict(name="spatial_crops", size=(16, 16), crop_pct=0.5, crops=1),
        dict(name="normalize"),
    )
    config.data.eval_split, config.eval_batch_size = f"test[:{COUNT}]", 8
    experiment = Experiment(resolve(config), make_mesh(config.mesh))
    params = experiment.create_state().params
    for number, head in enumerate(("head_p", "head_l")):
        kernel = params[head]["kernel"]
        params[head]["kernel"] = jax.random.normal(jax.random.key(number), kernel.shape)
    return experiment, params


def test_the_average_is_that_of_the_saved_views(trained, tmp_path):
    experiment, params = trained
    context = experiment.context([()], tmp_path)
    specs = {
        "views": {"type": "multiview", "clips": 2, "crops": 3},
        "soft": {"type": "multiview", "clips": 2, "crops": 3, "over": "probabilities", "save": False},
    }
    evaluators = create_evaluators(specs, context, ["views", "soft"])
    results = run_evaluators(evaluators, params, {})[""]
    assert results["views/examples"] == COUNT and results["views/views"] == VIEWS
    assert not (tmp_path / "soft").exists()

    saved = np.load(tmp_path / "views" / "views_model.npz")
    assert saved["logits"].shape == (COUNT, VIEWS, 4)
    total = np.zeros((COUNT, 4))
    for view in range(VIEWS):
        total += saved["logits"][:, view]
    assert results["views/accuracy"] == pytest.approx((total.argmax(1) == saved["label"]).mean())
    p = np.exp(saved["logits"] - saved["logits"].max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).mean(1)
    assert results["soft/accuracy"] == pytest.approx((p.argmax(1) == saved["label"]).mean())
    nll = -np.log(p[np.arange(COUNT), saved["label"]]).mean()
    assert results["soft/nll"] == pytest.approx(nll, rel=1e-5)
    np.testing.assert_allclose(
        saved["logits"], saved["compressed/logits"] / 2 + saved["lookup/logits"] / 2, rtol=1e-5
    )

    # every view's logits are the model's own on that view
    config = experiment.config.data.copy_and_resolve_references()
    split, clips, crops, _ = config.eval_transforms
    config.eval_transforms = (split, dict(clips) | dict(clips=2), dict(crops) | dict(crops=3))
    batch = next(iter(EvalBatches(config, config.eval_split, 8)))
    model = experiment.make_model()
    for head in ("head_p", "head_l"):
        getattr(model, head).kernel[...] = params[head]["kernel"]
    view = np.stack([Normalize()(frame) for frame in batch["image"][3, 4]])
    logits = jax.jit(lambda m, x: m(x)["logits"])(model, jnp.asarray(view)[None])
    np.testing.assert_allclose(saved["logits"][3, 4], logits[0], atol=1e-4)


def test_averages():
    logits = np.array([[[0.0, 3.0], [2.0, 0.0]]], np.float32)
    np.testing.assert_allclose(average(logits, "logits"), [[1.0, 1.5]])
    p = 1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(2.0))
    np.testing.assert_allclose(np.exp(average(logits, "probabilities"))[0, 1], np.mean(p), rtol=1e-6)


def test_what_is_wrong_is_named(trained):
    context = trained[0].context([()])
    for options, complaint in (
        (dict(over="logit"), "over='logit' is unknown"),
        (dict(clips=0), "clips=0 must be at least 1"),
        (
            dict(data={"eval_transforms": (dict(name="split_frames", frames=8),)}),
            "clips=4 needs even_clips or even_segments among data.eval_transforms",
        ),
    ):
        with pytest.raises(UserError, match=complaint):
            create_evaluators({"views": {"type": "multiview", **options}}, context)
