"""Every token mixer inside ViT and LookupViT, trained a few steps on real digits (-s prints the table)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from lookupjax import create_model
from lookupjax.analysis.counts import count_params
from lookupjax.attention import list_mixers
from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.tasks.classification import Classification
from lookupjax.training.state import merge_model, split_model

STEPS = 30
SIZE = dict(dim=24, depth=1, num_heads=4, channels=1, num_classes=10, pos_init=0.5)
MODELS = {
    "vit": dict(name="vit_mu", patch=(2, 2), pos_grid=(4, 4)),
    "lookupvit": dict(name="lookupvit_mu", patch=(1, 1), pos_grid=(8, 8), compressed=(4, 4)),
}

SLOW = ("bra", "contmix", "halo")  # to compile: learn in ViT alone
UNLEARNT = {(mixer, "lookupvit") for mixer in SLOW}


@cache
def batch() -> dict[str, np.ndarray]:
    digits = load_digits()
    images = (digits.images[:32, :, :, None] / 8.0 - 1.0).astype(np.float32)
    return {"image": images, "label": digits.target[:32].astype(np.int32)}


def build(mixer: str, kind: str, **options) -> nnx.Module:
    return create_model(**MODELS[kind], **SIZE, attention=mixer, **options)


@cache
def token_head(mixer: str) -> dict[str, str]:
    """The class token, unless the mixer says that it cannot have one."""
    try:
        nnx.eval_shape(lambda: build(mixer, "vit"))
    except UserError as error:
        assert "works on the token grid alone" in str(error) and "head='gap'" in str(error)
        return dict(head="gap")
    return dict(head="token")


@pytest.fixture(scope="module")
def table():
    rows = ["mixer        model      head   parameters  first loss  last loss"]
    yield rows
    print("", *rows, sep="\n")


@pytest.mark.parametrize("mixer", SLOW)
def test_what_is_slow_to_compile_fits_lookupvit(mixer):
    logits = nnx.eval_shape(lambda: build(mixer, "lookupvit")(jnp.asarray(batch()["image"])))["logits"]
    assert logits.shape == (32, 10)


@pytest.mark.parametrize(
    "mixer, kind", [(m, k) for m in list_mixers() for k in MODELS if (m, k) not in UNLEARNT]
)
def test_it_learns(mixer, kind, table):
    head = token_head(mixer) if kind == "vit" else {}
    model = build(mixer, kind, **head)
    graphdef, params, stats = split_model(model)
    task, optimizer = Classification.for_model(model), optax.sign_sgd(3e-3)

    def loss(params, key, batch):
        outputs = merge_model(graphdef, params, stats)(batch["image"], rngs=Keys(key))
        assert ("aux_loss" in outputs) == model.blocks[0].attn.has_aux_loss
        return task.loss(outputs, batch)[0]

    def run(params, keys, batch):
        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, key, batch)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    losses = jax.jit(run)(params, jax.random.split(jax.random.key(0), STEPS), batch())
    cells = (mixer.ljust(12), kind.ljust(10), head.get("head", "-").ljust(6), f"{count_params(model):10,}")
    table.append(" ".join(cells) + f"{losses[0]:12.3f}{losses[-1]:11.3f}")
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.1


def test_every_block_can_have_its_own_mixer_but_not_under_scan():
    def logits(**options):
        model = create_model(
            **MODELS["vit"], **(SIZE | dict(depth=2)), attention=("flow", "softmax"), **options
        )
        return jax.eval_shape(lambda x: model(x, rngs=Keys(0))["logits"], jnp.ones((2, 8, 8, 1)))

    assert logits(remat="block").shape == (2, 10)
    with pytest.raises(UserError, match="scan=True needs equal blocks"):
        logits(scan=True)
    with pytest.raises(UserError, match="attention has 3 entries, the model has 1 blocks"):
        build(("flow",) * 3, "vit")
