"""What holds for every model file, on its smallest variant "mu"."""

import importlib
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lookupjax import create_model, list_models
from lookupjax.analysis.counts import count_params, count_products, trace_model
from lookupjax.layers.rngs import Keys
from lookupjax.models import MODULES, model_options, nominal_options
from lookupjax.paths import named_leaves
from lookupjax.training.sharding import make_mesh, tree_shardings
from lookupjax.training.state import merge_model, split_model
from tests.models.cheap_keys import cheap_key

# Besides "logits": what a batch of eight 10-class images must give.
CLASSES, BATCH = 10, 8


def module(name: str):
    return importlib.import_module(f"lookupjax.models.{name}")


CLASSIFIERS = [name for name in MODULES if "num_classes" in model_options(f"{name}_mu")]


@cache
def images(name: str) -> np.ndarray:
    size = getattr(module(name), "INPUT_SIZE", {}).get("mu", (224, 224))
    return np.random.default_rng(0).normal(size=(BATCH, *size, 3)).astype(np.float32)


@cache
def create_abstract(name: str) -> nnx.Module:
    return nnx.eval_shape(lambda: create_model(f"{name}_mu", num_classes=CLASSES))


@cache
def state(name: str):
    def make():
        return create_model(f"{name}_mu", num_classes=CLASSES, rngs=Keys(cheap_key(1)))

    graphdef, _, _ = split_model(create_abstract(name))
    # as NumPy's, of which a question compiles nothing
    params, stats = jax.device_get(jax.jit(lambda: split_model(make())[1:])())
    # heads that start at zero would hide everything before them
    params = jax.tree.map(
        lambda p: p if np.any(p) else np.random.default_rng(p.size).normal(0, 0.02, p.shape).astype(p.dtype),
        params,
    )
    return graphdef, params, stats


def loss(graphdef, params, stats, x):
    model = merge_model(graphdef, params, stats)
    outputs = model(x, rngs=Keys(cheap_key(2)))
    total = sum(jnp.square(outputs[head]).mean() for head in model.loss_heads)
    return total + outputs.get("aux_loss", 0.0), (outputs, model.features(x))


@cache
def trained(name: str):
    """(loss, gradients, outputs) of one training call."""
    graphdef, params, stats = state(name)
    step = jax.jit(jax.value_and_grad(lambda p, s, x: loss(graphdef, p, s, x), has_aux=True))
    (value, (outputs, features)), grads = step(params, stats, images(name))
    return value, jax.device_get(grads), outputs, features


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_outputs_and_gradients(name):
    value, grads, outputs, features = trained(name)
    assert np.isfinite(value)
    for head in {"logits", *type(create_abstract(name)).loss_heads}:
        assert outputs[head].shape == (BATCH, CLASSES) and outputs[head].dtype == jnp.float32
    assert outputs["features"].ndim == 2 and outputs["features"].shape[0] == BATCH
    frozen = getattr(create_abstract(name), "frozen", ())
    leaves = [g for path, g in named_leaves(grads).items() if not any(re.search(f, path) for f in frozen)]
    assert all(np.isfinite(g).all() for g in leaves)
    assert np.mean([np.any(g) for g in leaves]) > 0.8  # keys' biases and the like have none
    assert all(f.shape[0] == BATCH for f in jax.tree.leaves(features))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_sharded_over_8_devices_and_in_bfloat16(name):
    """FSDP in float32 gives the numbers of one device; bfloat16 compute gives them roughly."""
    graphdef, params, stats = state(name)
    mesh = make_mesh(ConfigDict(dict(data=1, fsdp=8, model=1)))
    half, _, _ = split_model(
        nnx.eval_shape(lambda: create_model(f"{name}_mu", num_classes=CLASSES, dtype=jnp.bfloat16))
    )

    def program(graphdef):
        return jax.jit(lambda params, stats, x: merge_model(graphdef, params, stats)(x)["logits"])

    exact = program(graphdef)
    whole, rough = exact(params, stats, images(name)), program(half)(params, stats, images(name))
    split = exact(
        *jax.device_put(
            (params, stats, images(name)),
            (*tree_shardings((params, stats), mesh), NamedSharding(mesh, PartitionSpec("fsdp"))),
        )
    )
    scale = np.abs(whole).max()
    np.testing.assert_allclose(split, whole, atol=1e-4 * scale, rtol=0)
    assert rough.dtype == jnp.float32 and np.isfinite(rough).all()
    np.testing.assert_allclose(rough, whole, atol=0.25 * scale, rtol=0)


PUBLISHED = [
    (f"{name}_{variant}", figures)
    for name in MODULES
    for variant, figures in getattr(module(name), "PUBLISHED", {}).items()
]


@pytest.mark.parametrize("name, published", PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_published_counts(name, published, root):
    model = nnx.eval_shape(lambda: create_model(name, **nominal_options(name)))
    if published.params is not None:
        assert count_params(model) == published.params
    table = (root / "docs/models_table.md").read_text()
    assert f"| `{name}` | {count_params(model):,} |" in table, "run python scripts/models_table.py"
    if published.gmacs is not None:
        macs = count_products(trace_model(model, published.size)) / 1e9
        assert macs == pytest.approx(published.gmacs + published.gmacs_extra, rel=0.02)


def test_every_file_has_a_smallest_variant_and_every_published_one_exists():
    names = set(list_models())
    assert {f"{name}_mu" for name in MODULES} <= names
    assert {name for name, _ in PUBLISHED} <= names
