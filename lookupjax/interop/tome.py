"""ToMe: a ViT's weights (any file that `interop.vit` reads), and the fixtures of the official code."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.interop import vit
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict, images
from lookupjax.layers.rngs import Keys
from lookupjax.models.tome import ToMe, match, merge, source_matrix, unmerge


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`; DeiT's distillation token is the first register here."""
    if "dist_token" not in params:
        return vit.parameter(params, path, shape)
    if path == "pos":
        return params["pos_embed"][:, 2:].reshape(shape)
    if path == "cls_pos":
        return params["pos_embed"][0, 0].reshape(shape)
    if path == "registers":
        return (params["dist_token"][0] + params["pos_embed"][0, 1:2]).reshape(shape)
    return vit.parameter(params, path, shape)


def build(fixture: Fixture, **overrides) -> ToMe:
    """The model a fixture's config describes, with the fixture's parameters."""
    args = {key: value for key, value in fixture.config.items() if value is not None}
    options = vit.timm_options(dataclasses.replace(fixture, config={"args": args}))
    del options["resnet_form"]
    distilled = "dist_token" in fixture.params
    options |= dict(prop_attn=args.get("prop_attn", True), distilled=distilled) | schedule(args)
    model = nnx.eval_shape(lambda: ToMe(**options | overrides, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def schedule(args: dict[str, Any]) -> dict[str, Any]:
    """r (and inflect) of the config: of every layer, of the first ones, or (r, inflect) as [r, inflect]."""
    r = tuples(args.get("r_per_layer", args.get("r", 0)))
    if isinstance(r, tuple) and len(r) == 2 and (r[1] < 0 or isinstance(r[1], float)):
        return dict(r=r[0], inflect=float(r[1]))
    return dict(r=r)


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    if "metric" in fixture.inputs:
        return merging(fixture)
    model, x = build(fixture), images(fixture.inputs["x"])

    @jax.jit
    def forward(model: ToMe, x: jax.Array) -> dict[str, jax.Array]:
        tokens = model.run(x)
        return {"out/logits": model(x)["logits"], "out/size": tokens.size[..., None]} | {
            "out/source": tokens.source,
            "out/features": model.norm(tokens.x),
        }

    result = forward(model, x)
    if fixture.wants("out/logits_plain_vit"):
        plain = build(fixture, r=0, inflect=0.0)
        result |= {"out/logits_plain_vit": jax.jit(lambda model, x: model(x)["logits"])(plain, x)}
    return result


def merging(fixture: Fixture) -> dict[str, jax.Array]:
    """One merging of given tokens and sizes."""
    config, inputs = fixture.config, fixture.inputs
    x, size = inputs["x"], inputs.get("size", jnp.ones((*inputs["x"].shape[:2], 1)))[..., 0]
    source = holders = jnp.broadcast_to(jnp.eye(x.shape[1])[None], (x.shape[0], x.shape[1], x.shape[1]))
    kinds = dict(class_token=config["class_token"], distilled=config["distill_token"])
    matching = match(inputs["metric"], config["r"], **kinds)
    if matching is not None:
        x, size = merge(x, size, matching)
        # the reference merges back as if no distillation token had come second: only its order differs
        holders = source_matrix(source, matching._replace(distilled=False))
        source = source_matrix(source, matching)
    return {
        "out/x": x,
        "out/size": size[..., None],
        "out/source": source,
        "out/unmerged": unmerge(x, holders),
    }
