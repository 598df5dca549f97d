"""The worked examples of docs/extend.md, run as they stand there."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from doc_commands import commands
from flax import nnx

import lookupjax.attention
import lookupjax.models
import lookupjax.tasks
from lookupjax import create_model
from lookupjax.analysis.counts import count_params
from lookupjax.attention import create_mixer, list_mixers, record_taps
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.tasks import create_task
from lookupjax.training.state import merge_model, split_model

ROOMS = {"attention": lookupjax.attention, "models": lookupjax.models, "tasks": lookupjax.tasks}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """The page's files, each found in its room as if it lay there."""
    place, written = tmp_path_factory.mktemp("lookupjax"), []
    for command in commands("docs/extend.md"):
        path = Path(command.text.splitlines()[0].removeprefix("# "))
        if command.kind == "python" and path.suffix == ".py":
            (place / path.parent.name).mkdir()
            (place / path.parent.name / path.name).write_text(command.text)
            written.append(f"lookupjax.{path.parent.name}.{path.stem}")
    with pytest.MonkeyPatch.context() as patch:
        for room, package in ROOMS.items():
            patch.setattr(package, "__path__", [*package.__path__, str(place / room)])
        patch.setattr(lookupjax.models, "MODULES", [*lookupjax.models.MODULES, "mlp_mixer"])
        importlib.invalidate_caches()
        yield written
    for name in written:
        sys.modules.pop(name, None)


def gradients(model: nnx.Module, images: jax.Array):
    graphdef, params, stats = split_model(model)

    def loss(params):
        outputs = merge_model(graphdef, params, stats)(images, rngs=Keys(1))
        return jnp.square(outputs["features"]).mean() + jnp.square(outputs["logits"] - 1.0).mean()

    return jax.tree.leaves(jax.jit(jax.grad(loss))(params))


def test_the_page_has_a_mixer_a_model_and_a_task(files):
    assert files == ["lookupjax.attention.aft", "lookupjax.models.mlp_mixer", "lookupjax.tasks.focal"]


def test_the_mixer_is_one_of_all():
    assert "aft" in list_mixers()
    mixer = create_mixer("aft", 24, 4, rngs=Keys(0))
    x = jax.random.normal(jax.random.key(0), (2, 16, 24))
    weights = jax.nn.softmax(mixer.k(x), axis=1)
    expected = mixer.out(jax.nn.sigmoid(mixer.q(x)) * (weights * mixer.v(x)).sum(1, keepdims=True))
    np.testing.assert_allclose(mixer(x), expected, atol=1e-6)
    assert mixer(x, x[:, :5]).shape == x.shape
    with pytest.raises(UserError, match="does not support masks"):
        mixer(x, mask=jnp.ones((2, 1, 16, 16), bool))


def test_the_mixer_trains_in_a_vit():
    model = create_model("vit_mu", attention="aft", num_classes=3)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    assert all(np.isfinite(g).all() for g in gradients(model, images))
    assert "blocks/0/attn/k" in record_taps(model, images, names=("k",))[1]


def test_the_model_is_found_and_counts_what_is_published():
    model = create_model("mlp_mixer_mu", num_classes=10, drop_path=0.1)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    grads = gradients(model, images)
    assert all(np.isfinite(g).all() for g in grads) and np.mean([np.any(g) for g in grads]) > 0.9
    large = nnx.eval_shape(lambda: create_model("mlp_mixer_b16"))
    assert count_params(large) == 59_880_472  # Mixer-B/16, ImageNet-1K head


def test_the_task_has_its_option():
    outputs = {"logits": jax.random.normal(jax.random.key(0), (4, 5))}
    batch, model = {"label": jnp.arange(4)}, nnx.eval_shape(lambda: create_model("vit_mu"))
    plain = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["label"])
    for gamma in (0.0, 2.0):
        loss, _ = create_task({"name": "focal", "gamma": gamma}, model).loss(outputs, batch)
        np.testing.assert_allclose(loss, ((1 - jnp.exp(-plain)) ** gamma * plain).mean(), rtol=1e-5)
    with pytest.raises(UserError, match="did you mean 'gamma'"):
        create_task({"name": "focal", "gama": 1.0}, model)
