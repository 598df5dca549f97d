"""Flowformer: the names of thuml/Flowformer's state dicts."""

import re
from typing import Any

import jax
from flax import nnx

from lookupjax.attention import record_taps
from lookupjax.attention.flow import flow_attention, phi
from lookupjax.attention.softmax import merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, images, torch_value
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.flowformer import Flowformer

NAMES = {"attn_norm": "norm1", "attn.out": "attn.proj", "mlp_norm": "norm2"}
HEADS = 12  # of every stage, hard-coded in the reference


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    if path == "pos":
        return params["pos_embed"].reshape(shape)
    path = re.sub(r"^stages/(\d+)/embed/", r"patch_embed/\1/proj/", path)
    path = re.sub(r"^stages/(\d+)/blocks/", r"blocks/\1/", path)
    return torch_value(params, path, NAMES)


def build(fixture: Fixture) -> Flowformer:
    """The vision model a fixture's config describes, with the fixture's parameters."""
    args = {k: tuples(v) for k, v in fixture.config.items()}
    dims = args["embed_dim"]
    heads = args.get("num_heads", HEADS)
    side = args["img_size"] // args["patch_size"]
    kwargs = dict(
        dims=dims,
        depths=args["depth"],
        num_heads=heads if isinstance(heads, tuple) else (heads,) * len(dims),
        patches=(args["patch_size"], *(2,) * (len(dims) - 1)),
        channels=args.get("in_chans", 3),
        pos_grid=(side, side),
        num_classes=args["num_classes"],
        mlp_ratio=tuple(float(r) for r in args.get("mlp_ratio", (4,) * len(dims))),
        eps=args.get("norm_eps", 1e-6),
        attention_options=dict(qkv_bias=args.get("qkv_bias", True)),
    )
    model = nnx.eval_shape(lambda: Flowformer(**kwargs, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    kind = fixture.config["kind"]
    if kind == "cv":
        return jax.jit(vision)(build(fixture), images(fixture.inputs["x"]))
    if kind not in ("attn", "attn_causal"):
        raise UserError(f"flowformer fixtures are of kind cv, attn or attn_causal, not {kind!r}")
    return attention(fixture, causal=kind == "attn_causal")


def vision(model: Flowformer, x: jax.Array) -> dict[str, jax.Array]:
    """The logits, the tokens after every stage and block, and every attention's output."""
    maps = model.features(x)
    out, taps = record_taps(model, x, names=("output",))
    result = {"out/logits": out["logits"], "out/norm": model.encode(x)}
    result |= {f"out/stage{i}": flatten_grid(plane) for i, plane in enumerate(maps)}
    for path, value in taps.items():
        stage, block = re.fullmatch(r"stages/(\d+)/blocks/(\d+)/attn/output", path).groups()
        result[f"out/attn{stage}{block}"] = value
    return result


def attention(fixture: Fixture, causal: bool) -> dict[str, jax.Array]:
    """One attention, whose q, k and v are three inputs and whose widths in, inside and out differ."""
    config, params = fixture.config, fixture.params

    def project(name: str, x: jax.Array) -> jax.Array:
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"][None, None]

    @jax.jit
    def run(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        q, k, v = (
            split_heads(project(f"{name}_projection", x), config["n_heads"])
            for name, x in (("query", inputs["q"]), ("key", inputs["k"]), ("value", inputs["v"]))
        )
        q, k = phi(q, "sigmoid"), phi(k, "sigmoid")
        merged = merge_heads(flow_attention(q, k, v, causal=causal, eps=config.get("eps", 1e-6)))
        return {"out/pre_out_proj": merged, "out/y": project("out_projection", merged)}

    return run(fixture.inputs)
