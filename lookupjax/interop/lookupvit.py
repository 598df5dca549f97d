"""LookupViT: our NumPy definition's names (`block_0/gather/q/kernel`), and a start from a ViT's weights.

The start from a ViT is ours, not the paper's: patch embedding, positions, the compressed stream's
self-attention and MLP, and its final norm are those of the ViT; gathering, infusion, the lookup MLP, the
lookup stream's final norm and both heads keep their initial values. A video model starts from an image
ViT or LookupViT: the patch kernel is inflated as `tubelet_init` says, position tables repeat over time.
"""

import re
from typing import Any

import jax
from flax import nnx

from lookupjax.attention.lookup import REUSE, gather, infuse, infusion_weights
from lookupjax.attention.mixer import record_taps
from lookupjax.attention.softmax import attention_scores
from lookupjax.errors import UserError
from lookupjax.interop import vit
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import StateDict
from lookupjax.layers.embed import image_to_video
from lookupjax.layers.position import resize_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.lookupvit import LookupViT
from lookupjax.paths import named_leaves
from lookupjax.tasks.classification import Classification


def reference_name(path: str) -> str:
    """The reference's name of our parameter at `path`."""
    path = re.sub(r"^blocks/(\d+)/", r"block_\1/", path)
    path = path.replace("/cross/", "/")
    return re.sub(r"_norm/norm/", "_norm/", path)  # the LayerNorm inside QKNorm


FROM_VIT = (  # (our path, the ViT's)
    (r"^embed/(\w+)$", r"embed/\1"),
    (r"^pos_lookup$", "pos"),
    (r"^(blocks/\d+/(?:attn_norm|attn|mlp_norm|mlp)/.*)$", r"\1"),
    (r"^final_norm_p/(\w+)$", r"norm/\1"),
)


OPTIONS = ("tubelet_init",)  # of the model, which `parameter` takes


def parameter(params: StateDict, path: str, shape: tuple[int, ...], *, tubelet_init: str = "central") -> Any:
    """Our parameter at `path` from arrays of our own names, or from a ViT's file of any kind.

    Raises:
      UserError: when there is none.
      ValueError: when it has another size.
    """
    if "embed/kernel" in params:
        return image_to_video(path, params[reference_name(path)], shape, tubelet_init)
    for pattern, name in FROM_VIT:
        if re.search(pattern, path):
            video = len(shape) > 3 + (path == "embed/kernel")
            value = vit.parameter(params, re.sub(pattern, name, path), shape[1:] if video else shape)
            return image_to_video(path, value, shape, tubelet_init)
    raise UserError("a ViT has no such part")


def build(fixture: Fixture) -> LookupViT:
    """The model a fixture's config describes, with the fixture's parameters."""
    rename = {"heads": "num_heads", "classes": "num_classes"}
    config = {k: tuples(v) for k, v in fixture.config.items() if k not in ("layout", "notes")}
    options = {rename.get(k, k): v for k, v in config.items()}
    model = nnx.eval_shape(lambda: LookupViT(**options, rngs=Keys(0)))
    return fill(model, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    if "op" in fixture.config:
        cases = fixture.config.get("cases")
        return mhbc_op(fixture) if cases is None else resize_op(fixture)
    model = build(fixture)
    batch = {"image": fixture.inputs["x"], "label": fixture.inputs["label"]}
    result = forward(model, batch)
    if fixture.wants("grad/"):
        by_param, by_x = gradients(model, batch)
        named = {reference_name(path): g for path, g in named_leaves(by_param).items()}
        result |= {f"grad/{name}": g for name, g in (named | {"in/x": by_x}).items()}
    return result


def loss(out: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
    return Classification(heads=LookupViT.loss_heads).loss(out, batch)[0]


@jax.jit
def forward(model: LookupViT, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The outputs, the loss, and the tokens and weights on the way."""
    x = batch["image"]
    out, taps = record_taps(model, x, names=("weights",))
    compressed, lookup = model.tokenize(x, model.compressed)
    compressed_last, lookup_last = model.features(x)
    first = "shared" if model.shared is not None else "blocks/0/cross"
    return {
        "out/compressed_embed": compressed,
        "out/lookup_embed": lookup,
        "out/attention_0": taps[f"{first}/gather/weights"],
        "out/compressed_tokens": compressed_last,
        "out/lookup_tokens": lookup_last,
        "out/loss": loss(out, batch),
    } | {f"out/{name}": out[name] for name in ("logits", "logits_compressed", "logits_lookup")}


@jax.jit
def gradients(model: LookupViT, batch: dict[str, jax.Array]) -> tuple[dict, jax.Array]:
    """The loss's gradients by every parameter and by the images."""
    graphdef, params = nnx.split(model)

    def of(params: dict, x: jax.Array) -> jax.Array:
        return loss(nnx.merge(graphdef, params)(x), batch)

    return jax.grad(of, argnums=(0, 1))(nnx.to_pure_dict(params), batch["image"])


def resize_op(fixture: Fixture) -> dict[str, jax.Array]:
    """Only the token resize T, each case with and without antialias."""
    return {
        f"out/x{i}_antialias_{antialias}": resize_grid(
            fixture.inputs[f"x{i}"], tuple(case["new"]), antialias=antialias
        )
        for i, case in enumerate(fixture.config["cases"])
        for antialias in (True, False)
    }


def mhbc_op(fixture: Fixture) -> dict[str, jax.Array]:
    """Only the cross-attention's arithmetic, with the vector-Jacobian product of both outputs."""
    x = fixture.inputs
    operands = tuple(x[name] for name in "qkvw")
    scores = attention_scores(x["q"], x["k"])
    result = {"out/row_logsumexp": jax.nn.logsumexp(scores, axis=-1)}
    for reuse in REUSE:

        def both(q, k, v, w, reuse=reuse):
            scores = attention_scores(q, k)
            weights = jax.nn.softmax(scores, axis=-1)
            return gather(weights, v), infuse(infusion_weights(scores, weights, reuse), w)

        (gathered, infused), vjp = jax.vjp(both, *operands)
        result |= {f"out/{reuse}/gathered": gathered, f"out/{reuse}/infused": infused}
        grads = vjp((x["cot_gathered"], x["cot_infused"]))
        result |= {f"grad/{reuse}/{name}": g for name, g in zip("qkvw", grads)}
    return result
