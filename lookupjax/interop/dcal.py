"""DCAL: the names of our data sheet's reference model, and its single operations."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.attention.rollout import rollout, rollout_row
from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import BLOCK, StateDict, images, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.dcal import DCAL
from lookupjax.tasks.classification import Classification
from lookupjax.tasks.dual_cross_attention import balanced
from lookupjax.tasks.metric import batch_hard_triplet

NAMES = {"embed": "patch_embed"} | BLOCK
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "proj"}


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    path = path.removeprefix("trunk/")
    if path == "cls":
        return params["cls_token"].reshape(shape)
    if path in ("pos", "cls_pos"):  # one table there, class token first
        table = params["pos_embed"]
        return (table[:, :1] if path == "cls_pos" else table[:, 1:]).reshape(shape)
    return torch_value(params, path, NAMES)


def build(fixture: Fixture) -> DCAL:
    """The model a fixture's config describes, with the fixture's parameters."""
    config = fixture.config
    patch, (height, width) = config["patch"], config["img"]
    kwargs = dict(
        patch=(patch, patch),
        channels=fixture.inputs["image"].shape[1],
        pos_grid=(height // patch, width // patch),
        dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        num_classes=config["classes"],
        mlp_ratio=float(config.get("mlp", 4)),
        gelu=config.get("gelu", "exact"),
        eps=config.get("ln_eps", 1e-6),
        ratio=config["R"],
    )
    abstract = nnx.eval_shape(lambda: DCAL(**kwargs, rngs=Keys(0)))
    return fill(abstract, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    if "image" not in fixture.inputs:
        return functional(fixture)
    given = fixture.inputs
    x, pair = images(given["image"]), images(given.get("pair", given["image"]))
    label = given.get("labels", jnp.zeros(len(x), jnp.int32))
    return jax.jit(forward)(build(fixture), x, pair, label, given.get("w", jnp.zeros((3,))))


def forward(
    model: DCAL, x: jax.Array, pair: jax.Array, label: jax.Array, w: jax.Array
) -> dict[str, jax.Array]:
    """The model's outputs and intermediate values; the loss of PWCA is that of its mutual form."""
    count = x.shape[0]
    both = jnp.concatenate([x, pair])
    pairs = jnp.concatenate([jnp.arange(count, 2 * count), jnp.arange(count)])
    xs, attention = model.self_attention(model.trunk.tokenize(x))
    selected = model.select(attention)
    looked = model.global_local(xs[-1], selected)
    out = model(x)
    result = {
        "out/sa_logits": out["logits_sa"],
        "out/glca_logits": out["logits_glca"],
        "out/rollout": rollout(attention),
        "out/rollout_row": rollout_row(attention)[:, model.prefix :],
        "out/selected": selected,
        "out/glca_tokens": looked,
        "out/reid_feature": out["features"],
        "out/fgvc_prob": 2.0 * jnp.exp(out["logits"]),  # the sum of two distributions
    }
    for name in ("self", "mutual"):
        model.pwca = name
        logits = model(both, pairs=pairs)["logits_pwca"][:count]
        result[f"out/pwca_logits_{'selfstream' if name == 'self' else name}"] = logits
    branches = (out["logits_sa"], out["logits_glca"], result["out/pwca_logits_mutual"])
    cross_entropy = Classification().per_example
    target = jax.nn.one_hot(label, model.trunk.head.out_features)
    losses = jnp.stack([cross_entropy(logits, target).mean() for logits in branches])
    return result | {"out/losses": losses, "out/total_loss": balanced(losses, w)}


def functional(fixture: Fixture) -> dict[str, jax.Array]:
    """The operations alone: rollout, pair-wise attention, triplet and total loss."""
    config, given = fixture.config, fixture.inputs
    result = {}
    if "attn" in given:
        attention = list(given["attn"].mean(2))  # (layers, b, heads, n, n)
        result["out/rollout"] = rollout(attention)
        result["out/cls_row"] = rollout_row(attention)[:, 1:]
    if "feat" in given:
        stated = re.search(r"margin ([\d.]+)", config.get("triplet", ""))  # "batch-hard, margin 0.3, euclid"
        margin = float(stated[1]) if stated else config.get("margin", 0.3)
        result["out/triplet"] = batch_hard_triplet(given["feat"], given["labels"], margin)
    if "losses" in given:
        result["out/total_loss"] = balanced(given["losses"], given["w"])
    if "pwca_x1" in given:
        x1, x2 = given["pwca_x1"], given["pwca_x2"]
        heads = config.get("pwca_heads", config.get("heads"))
        abstract = nnx.eval_shape(lambda: SoftmaxAttention(x1.shape[-1], heads, rngs=Keys(0)))
        mixer = fill(abstract, lambda path, shape: torch_value(fixture.params, path, ATTENTION))
        result["out/pwca"] = jax.jit(mixer)(x1, jnp.concatenate([x1, x2], axis=1))
    return result
