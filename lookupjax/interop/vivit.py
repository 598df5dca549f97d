"""ViViT: scenic's names, and a start from an image ViT's file of any kind.

    joint, factorised_dot_product  Transformer/encoderblock_0/LayerNorm_0, MultiHeadDotProductAttention_0, ...
    factorised_self_attention      .../LayerNorm_time, MultiHeadDotProductAttention_time, ..._space, MlpBlock
    factorised_encoder             SpatialTransformer/..., TemporalTransformer/..., cls_SpatialTransformer

From an image model the patch kernel is inflated as `tubelet_init` says, the position table is resized to the
frame's grid and repeated over time, and both attentions of the factorised blocks take the image's; the
temporal transformer, the norm before attention over time and a head for other classes keep their initial
values.
"""

import math
import re
from typing import Any

import jax
from flax import nnx

from lookupjax.errors import UserError
from lookupjax.interop import vit
from lookupjax.interop.fixture import Fixture, fill
from lookupjax.interop.state_dict import StateDict
from lookupjax.layers.embed import image_to_video
from lookupjax.layers.rngs import Keys
from lookupjax.models.vivit import FORMS, ViViT

OPTIONS = ("tubelet_init",)  # of the model, which `parameter` takes

BLOCK = {
    "attn_norm": "LayerNorm_0",
    "attn": "MultiHeadDotProductAttention_0",
    "mlp_norm": "LayerNorm_1",
    "mlp": "MlpBlock_0",
}
DIVIDED = {  # of the factorised self-attention
    "time_norm": "LayerNorm_time",
    "time_attn": "MultiHeadDotProductAttention_time",
    "attn_norm": "LayerNorm_space",
    "attn": "MultiHeadDotProductAttention_space",
    "mlp_norm": "LayerNorm_mlp",
    "mlp": "MlpBlock",
}
LEAF = {"q": "query", "k": "key", "v": "value", "fc1": "Dense_0", "fc2": "Dense_1"}
SCENIC = re.compile(r"(output_projection|SpatialTransformer|Transformer/encoderblock_\d+/LayerNorm_time)/")


def is_scenic(params: StateDict) -> bool:
    """Whether these are scenic's names: of a video model, or of an image model of its own."""
    return any(SCENIC.search(name) for name in params) or _is_tubelet(params)


def _is_tubelet(params: StateDict) -> bool:
    return "embedding/kernel" in params and params["embedding/kernel"].ndim == 5


def encoder_name(params: StateDict, path: str) -> str:
    """The reference's transformer that our `path` belongs to."""
    if path.startswith("temporal/"):
        return "TemporalTransformer"
    spatial = any(name.startswith("SpatialTransformer/") for name in params)
    return "SpatialTransformer" if spatial else "Transformer"


def scenic_value(params: StateDict, path: str, shape: tuple[int, ...], tubelet_init: str) -> Any:
    """Our parameter at `path` from scenic's arrays, of a video or an image model.

    Raises:
      UserError: when there is none.
      ValueError: when it has another size.
    """
    encoder, own = encoder_name(params, path), path.removeprefix("temporal/")
    if own in ("pos", "cls_pos"):
        table = params[f"{encoder}/posembed_input/pos_embedding"]
        rows = int("cls" in params or f"cls_{encoder}" in params)
        if own == "cls_pos":
            return table[0, 0]
        table = table[:, rows:]
        if table.size == math.prod(shape) or len(shape) < 4:
            return table.reshape(shape)
        return image_to_video(own, table.reshape(shape[1:]), shape, tubelet_init)
    if own == "cls":
        return params[f"cls_{encoder}" if f"cls_{encoder}" in params else "cls"].reshape(shape)
    if own.startswith("norm/"):
        return params[f"{encoder}/encoder_norm/{own.removeprefix('norm/')}"]
    if own.startswith("embed/"):
        value = params[own.replace("embed/", "embedding/")]
        return image_to_video(own, value, shape, tubelet_init)
    if own.startswith("head/"):
        return params[own.replace("head/", "output_projection/")]
    number, module, leaf = re.fullmatch(r"blocks/(\d+)/(\w+)/(.*)", own).groups()
    first, slash, rest = leaf.partition("/")
    leaf = LEAF.get(first, first) + slash + rest
    at = f"{encoder}/encoderblock_{number}"
    names = DIVIDED if f"{at}/LayerNorm_time/scale" in params else BLOCK
    if module == "time_attn" and module not in names:
        module = "attn"
    if module not in names:
        raise UserError("an image model has no such part")
    return params[f"{at}/{names[module]}/{leaf}"].reshape(shape)


def image_value(params: StateDict, path: str, shape: tuple[int, ...], tubelet_init: str) -> Any:
    """Our parameter at `path` from an image ViT's file; raises as `scenic_value`."""
    if path.startswith("temporal/") or "/time_norm/" in path:
        raise UserError("an image model has no such part")
    if path == "embed/kernel" or (path == "pos" and len(shape) == 4):
        return image_to_video(path, vit.parameter(params, path, shape[1:]), shape, tubelet_init)
    return vit.parameter(params, path.replace("/time_attn/", "/attn/"), shape)


def parameter(params: StateDict, path: str, shape: tuple[int, ...], *, tubelet_init: str = "central") -> Any:
    """Our parameter at `path`, of `shape`, from a file of either kind."""
    value_of = scenic_value if is_scenic(params) else image_value
    return value_of(params, path, shape, tubelet_init)


FIXTURE_FORMS = {
    "spacetime": "joint",
    "factorized_encoder": "factorised_encoder",
    "factorized_self_attention_block": "factorised_self_attention",
    "factorized_dot_product_attention": "factorised_dot_product",
}
FIXTURE_HEADS = {"token": "token", "0": "token", "gap": "gap", "gmp": "max", "gsp": "sum"}
FIXTURE_HEADS |= {"mean": "gap", "max": "max", "sum": "sum"}


def build(fixture: Fixture) -> ViViT:
    """The model a fixture's config describes, with the fixture's parameters."""
    config, x, params = fixture.config, fixture.inputs["x"], fixture.params
    form = FIXTURE_FORMS[config["attention"]]
    token = any(name == "cls" or name.startswith("cls_") for name in params)
    height, width, *frames = config["patch"]
    sampled = 0 if _is_tubelet(params) else sampled_frames(fixture, int(token))
    temporal = {name.split("/")[1] for name in params if name.startswith("TemporalTransformer/encoderblock")}
    options = dict(
        form=form,
        patch=(1 if sampled else frames[0], height, width),
        channels=x.shape[-1],
        dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        num_classes=config["classes"],
        mlp_ratio=(config["mlp"] + 0.5) / config["dim"],  # the width is rounded down
        head=FIXTURE_HEADS[config.get("classifier", "token" if token else "gap")],
        temporal="transformer" if temporal else "mean",
        temporal_depth=len(temporal),
        order=config.get("attention_order", config.get("order", "time_space")),
        sampled_frames=sampled,
    )
    grid = nnx.eval_shape(lambda: ViViT(**options | dict(depth=0), rngs=Keys(0))).grid(x.shape[1:-1])
    model = nnx.eval_shape(lambda: ViViT(**options, pos_grid=grid, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(params, path, shape))


def sampled_frames(fixture: Fixture, cls: int) -> int:
    """Frames that a model without tubelets picks: as the config says, else by its positions."""
    if "n_sampled_frames" in fixture.config:
        return fixture.config["n_sampled_frames"]
    arrays = fixture.params.arrays
    if "TemporalTransformer/posembed_input/pos_embedding" in arrays:
        return arrays["TemporalTransformer/posembed_input/pos_embedding"].shape[1] - cls
    places = math.prod(n // p for n, p in zip(fixture.inputs["x"].shape[2:4], fixture.config["patch"]))
    return (arrays["Transformer/posembed_input/pos_embedding"].shape[1] - cls) // places


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    return jax.jit(forward)(build(fixture), fixture.inputs["x"])


def forward(model: ViViT, x: jax.Array) -> dict[str, jax.Array]:
    out = model(x)
    result = {f"out/{name}": out[name] for name in ("logits", "features")}
    if model.form != FORMS[1]:
        result["out/tokens"] = model.norm(model.sequences(x))
    return result
