"""CCAN: the names of our data sheet's reference model."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.evaluation.ranking import average_precision, cosine, ranked_hits
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import BLOCK, StateDict, images, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.ccan import CCAN
from lookupjax.tasks.metric import triplet_loss

NAMES = {
    "embed": "patch_embed",
    "condition": "cca",
    "query_norm": "norm_q",
    "token_norm": "norm_kv",
    "head": "fc",
} | BLOCK


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    if path in ("cls", "query"):
        return params[{"cls": "cls_token", "query": "cond_embed"}[path]].reshape(shape)
    if path in ("pos", "cls_pos"):  # one table there, class token first
        table = params["pos_embed"]
        return (table[:, :1] if path == "cls_pos" else table[:, 1:]).reshape(shape)
    path = re.sub(r"/attn/out/", "/proj/", path)  # its blocks have no sub-modules
    return torch_value(params, re.sub(r"/(attn|mlp)/(?!norm)", "/", path), NAMES)


def build(fixture: Fixture) -> CCAN:
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
        conditions=config["conds"],
        embedding=config["emb"],
    )
    abstract = nnx.eval_shape(lambda: CCAN(**kwargs, rngs=Keys(0)))
    return fill(abstract, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, Any]:
    """Everything the fixture can expect, under its own keys."""
    given, result = fixture.inputs, {}
    if "image" in given:
        x, margin = images(given["image"]), fixture.config.get("margin", 0.3)
        repeated = fixture.config.get("queries", "single") != "single"
        result |= jax.jit(lambda model, x, c: forward(model, x, c, margin, repeated))(
            build(fixture), x, given["cond"]
        )
    if "q_emb" in given:
        q, g, q_label, g_label = (np.asarray(given[k]) for k in ("q_emb", "g_emb", "q_label", "g_label"))
        hits, _ = ranked_hits(cosine(q, g), q_label[:, None] == g_label[None])
        precision = average_precision(hits)
        result |= {"out/ap": precision, "out/map": np.nanmean(precision)}
    return result


def forward(
    model: CCAN, x: jax.Array, condition: jax.Array, margin: float, repeated: bool
) -> dict[str, jax.Array]:
    """Embeddings of anchors, positives and negatives, what their conditions look at, and their loss."""
    condition = jnp.tile(condition, len(x) // len(condition))
    out, taps = record_taps(model, x, condition)
    attention = taps["condition/attn/weights"]
    if repeated:  # the reference asks once per token, with equal queries
        attention = jnp.broadcast_to(
            attention, (*attention.shape[:2], attention.shape[3], attention.shape[3])
        )
    anchor, positive, negative = jnp.split(out["embedding"], 3)
    return {
        "out/embedding": out["embedding"],
        "out/cca_attention": attention,
        "out/triplet": triplet_loss(anchor, positive, negative, margin).mean(),
    }
