"""Attentive poolings: the names of billpsomas/efficient-probing's modules."""

import math
import re
from typing import Any

import jax
import numpy as np
from flax import nnx

from lookupjax.attention.mixer import record_taps
from lookupjax.attention.pooling import Pooling, create_pooling
from lookupjax.errors import UserError, nearest
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import BLOCK, StateDict, torch_value
from lookupjax.layers.rngs import Keys
from lookupjax.models.probe import Classifier

HEADS: dict[str, str | None] = {"num_heads": "num_heads", "qkv_bias": "qkv_bias"}
BLOCKS: dict[str, str | None] = HEADS | {"mlp_ratio": "mlp_ratio"}
# reference argument -> ours, None where it does nothing; those of WIDTHS are the tokens' width
OPTIONS: dict[str, dict[str, str | None]] = {
    "ep": {"num_queries": "num_queries", "d_out": "d_out", "qkv_bias": "qkv_bias"},
    "abmilp": {
        "self_attention_apply_to": "self_attention",
        "activation": "activation",
        "depth": "depth",
        "num_heads": "num_heads",
    },
    "simpool": HEADS,
    "esimpool": HEADS | {"qkv_bias": None},
    "aim": HEADS | {"num_queries": "num_queries"},
    "clip": HEADS | {"feat_size": "feat_size"},
    "siglip": BLOCKS,
    "coca": {"num_img_queries": "num_queries", "dim_head": "head_dim", "heads": "num_heads"},
    "cait": BLOCKS | {"depth": "depth", "init_scale": "init"},
    "dinovit": BLOCKS,
    "jepa": BLOCKS,
    "dolg": {"s3_dim": "width"},
    "cbam": {"spatial_kernel_size": "kernel", "rd_ratio": "ratio"},
    "cae": HEADS,
    "vitmhca": HEADS,
}
WIDTHS = ("dim", "in_features", "embed_dim", "d_model", "in_c", "channels")
CLASS_TOKEN = {"query": "cls_token"}
NAMES = {  # the start of our path -> the reference's, within one pooling; the first that fits
    "ep": CLASS_TOKEN,
    "abmilp": {"attn/out": "self_attn/proj", "attn": "self_attn"},
    "simpool": {"norm": "norm_patches", "q": "wq", "k": "wk"},
    "esimpool": {"norm": "norm_patches"},
    "aim": CLASS_TOKEN | {"norm": "bn"},
    "clip": {"pos": "pos_embed", "out": "proj"},
    "siglip": {"query": "latent", "attn/q": "q", "attn/k": "k", "attn/v": "v", "attn/out": "proj"},
    "coca": {
        "query": "img_queries",
        "norm/scale": "norm/gamma",
        "norm/bias": "norm/beta",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "out": "to_out",
    },
    "cait": CLASS_TOKEN | {"blocks": "blocks_token_only"},
    "dinovit": {part: f"dino_block/{part}" for part in ("attn_norm", "attn", "mlp_norm", "mlp")},
    "jepa": {
        "query": "query_tokens",
        "attn_norm": "cross_attention_block/attn_norm",
        "attn/out": "cross_attention_block/xattn/proj",
        "attn": "cross_attention_block/xattn",
        "mlp": "cross_attention_block/mlp",
        "mlp_norm": "cross_attention_block/mlp_norm",
    },
    "dolg": {"project": "conv1", "norm": "bn", "score": "conv2"},
    "cbam": {
        "fc1": "channel/fc1",
        "fc2": "channel/fc2",
        "conv": "spatial/conv/conv",
        "norm": "spatial/conv/bn",
    },
    "cae": {
        "query": "query_token",
        "q_norm": "norm1_q",
        "k_norm": "norm1_k",
        "v_norm": "norm1_v",
        "spare_norm": "norm2_cross",
        "q": "cross_attn/q",
        "k": "cross_attn/k",
        "v": "cross_attn/v",
        "out": "cross_attn/proj",
    },
    "vitmhca": CLASS_TOKEN | {"q": "query_proj", "k": "key_proj", "v": "value_proj"},
}
COMPONENTS = BLOCK | {"gamma1": "gamma_1", "gamma2": "gamma_2"}


def options(name: str, args: dict) -> dict[str, Any]:
    """The pooling's width and options from the reference's arguments.

    Raises:
      UserError: for an argument that is not known here.
    """
    ours: dict[str, Any] = {}
    for key, value in args.items():
        if key in WIDTHS:
            ours["dim"] = value
        elif key in OPTIONS[name]:
            option = OPTIONS[name][key]
            if option is not None:
                ours[option] = value
        elif (name, key, value) != ("ep", "num_heads", 1):
            raise UserError(f"pooling {name!r} has no argument {key!r}{nearest(key, OPTIONS[name])}")
    return ours


def reference_path(name: str, path: str) -> str:
    """Our path inside pooling `name` with the reference's modules, still ending in our kind of leaf."""
    if score := re.match(r"score/(\d+)/", path):  # activations stand between the layers there
        return f"attention_predictor/{2 * int(score[1])}/{path[score.end() :]}" if name == "abmilp" else path
    for ours, theirs in NAMES[name].items():
        if path == ours or path.startswith(f"{ours}/"):
            return theirs + path[len(ours) :]
    return path


def parameter(
    params: StateDict, label: str, name: str, path: str, shape: tuple[int, ...]
) -> np.ndarray | jax.Array:
    """The parameter of pooling `name` at `path`; 1x1 convolutions are linear layers here."""
    value = torch_value(params, f"{label}/pool/{reference_path(name, path)}", COMPONENTS)
    return value.reshape(shape) if value.size == math.prod(shape) else value


def build(fixture: Fixture, label: str, name: str, args: dict) -> Pooling:
    """The pooling of one entry of the fixture, with its parameters."""
    if name not in OPTIONS:
        raise UserError(f"there is no pooling {name!r}{nearest(name, OPTIONS)}; there are {list(OPTIONS)}")
    kwargs = options(name, args)
    pool = nnx.eval_shape(lambda: create_pooling(name, rngs=Keys(0), **kwargs))
    return fill(pool, lambda path, shape: parameter(fixture.params, label, name, path, shape))


def classifier(fixture: Fixture, label: str, width: int) -> Classifier:
    """BatchNorm and linear layer of one entry."""
    module = nnx.eval_shape(lambda: Classifier(width, fixture.config["classes"], rngs=Keys(0)))
    names = {"norm": "bn", "head": "fc"}
    return fill(module, lambda path, shape: torch_value(fixture.params, f"{label}/{path}", names))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    tokens, result = fixture.inputs["tokens"], {}
    for label, args in fixture.config["probes"].items():
        pool = build(fixture, label, label.partition("@")[0], args)
        pooled, taps = jax.jit(lambda pool, x: record_taps(pool, x))(pool, tokens)
        result[f"out/{label}/pooled"] = pooled
        if "/weights" in taps:
            result[f"out/{label}/attn"] = taps["/weights"]
        if f"{label}.fc.weight" in fixture.params:
            result[f"out/{label}/logits"] = classifier(fixture, label, pool.width)(pooled)
    return result
