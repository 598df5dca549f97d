"""CrossViT: the names of IBM/CrossViT's and timm's state dicts."""

import re
from typing import Any

import jax
import numpy as np
from flax import nnx

from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import (
    BLOCK,
    StateDict,
    channels_first,
    images,
    reference_gradients,
    torch_value,
)
from lookupjax.layers.resize import bicubic
from lookupjax.layers.rngs import Keys
from lookupjax.models.crossvit import CrossViT
from lookupjax.tasks.adversarial import ascend, clip_pixels
from lookupjax.tasks.classification import Classification

NAMES = {"project": "projs", "revert": "revert_projs"} | BLOCK
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "num_classes": "num_classes",
    "patch_size": "patches",
    "embed_dim": "dims",
    "depth": "depth",
    "num_heads": "num_heads",
    "multi_conv": "conv_stem",
    "crop_scale": "crop",
    "qkv_bias": "qkv_bias",
    "global_pool": "pool",
}


def reference_path(path: str, params: StateDict) -> str:
    """Our path with the reference's order of components, still ending in our kind of leaf."""
    path = re.sub(r"^blocks/(\d+)/branches/", r"blocks/\1/blocks/", path)
    path = re.sub(r"/(project|revert)/(\d+)/norm/", r"/\1/\2/0/", path)
    path = re.sub(r"/(project|revert)/(\d+)/linear/", r"/\1/\2/2/", path)
    path = re.sub(r"^embed/(\d+)/convs/(\d)/", lambda m: f"patch_embed/{m[1]}/proj/{2 * int(m[2])}/", path)
    path = re.sub(r"^embed/(\d+)/", r"patch_embed/\1/proj/", path)
    fusion = re.fullmatch(r"(blocks/\d+/fusion/\d+)/(\d+)/(.*)", path)
    if fusion:
        place, index, rest = fusion.groups()
        rest = re.sub(r"^attn/([qkv])/", r"attn/w\1/", re.sub(r"^norm/", "norm1/", rest))
        single = f"{place}/norm1/weight".replace("/", ".") in params  # not in a list of its own then
        path = f"{place}/{rest}" if single else f"{place}/{index}/{rest}"
    return path


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    table = re.fullmatch(r"(cls|pos)/(\d+)", path)
    if table:
        stem = {"cls": "cls_token", "pos": "pos_embed"}[table[1]]
        dotted, underscored = f"{stem}.{table[2]}", f"{stem}_{table[2]}"  # official, timm
        return params[dotted if dotted in params else underscored].reshape(shape)
    return torch_value(params, reference_path(path, params), NAMES)


def options(args: dict) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    size, scale = args["img_size"], args.get("img_scale")
    if scale is None:  # official: one square size per branch
        sizes = tuple((n, n) for n in size)
    else:  # timm: one size, scaled for each branch
        height, width = (size, size) if isinstance(size, int) else size
        sizes = tuple((int(height * s), int(width * s)) for s in scale)
    ratios = tuple(float(r) for r in args["mlp_ratio"][: len(sizes)])
    ours = {ours: tuples(args[theirs]) for theirs, ours in OWN.items() if theirs in args}
    return ours | dict(sizes=sizes, mlp_ratio=ratios)


def abstract(fixture: Fixture) -> CrossViT:
    kwargs = options(fixture.config["args"])
    return nnx.eval_shape(lambda: CrossViT(**kwargs, rngs=Keys(0)))


def build(fixture: Fixture) -> CrossViT:
    """The model a fixture's config describes, with the fixture's parameters."""
    return fill(abstract(fixture), lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    if fixture.config["kind"] == "op":
        return resized(fixture)
    if "noise0" in fixture.inputs:
        return adversarial_step(fixture)
    return jax.jit(forward)(build(fixture), images(fixture.inputs["x"]))


def forward(model: CrossViT, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs and intermediate values."""
    result = {f"out/patch_embed{i}": t for i, t in enumerate(model.patch_tokens(x))}
    xs = model.tokenize(x)
    for k, (block, rates) in enumerate(zip(model.blocks, model.rates())):
        attended = block.attend(xs, rates=rates)
        if k == 0:
            result |= {f"out/fusion{i}": block.visit(attended, i) for i in range(len(xs))}
        xs = block(xs, rates=rates)
        result |= {f"out/blk{k}_branch{i}": t for i, t in enumerate(xs)}
    return result | {"out/logits": model(x)["logits"]}


def resized(fixture: Fixture) -> dict[str, jax.Array]:
    """Only the bicubic resize, to each expected size."""
    x = images(fixture.inputs["x"])
    return {
        key: channels_first(bicubic(x, expected.shape[-2:])) for key, expected in fixture.expected.items()
    }


def adversarial_step(fixture: Fixture) -> dict[str, jax.Array]:
    """One fast adversarial step from a given noise, and the loss that is then trained on."""
    config, model = fixture.config, build(fixture)
    x, noise = images(fixture.inputs["images"]), images(fixture.inputs["noise0"])
    task, batch = Classification(), {"label": fixture.inputs["labels"]}
    eps, step = config["clip_eps"] / 255.0, config["fgsm_step"] / 255.0

    def loss(model: CrossViT, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, std = (np.asarray(v, np.float32)[None, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        out = model((pixels - mean) / std)
        return task.loss(out, batch)[0], out["logits"]

    @jax.jit
    def run(model: CrossViT) -> dict[str, jax.Array]:
        noise1, value, gradient = ascend(lambda pixels: loss(model, pixels)[0], x, noise, eps=eps, step=step)
        adversarial, logits = loss(model, clip_pixels(x + noise1))
        return {
            "out/loss_clean_noise": value,
            "out/noise_grad": channels_first(gradient),
            "out/noise1": channels_first(noise1),
            "out/loss_adv": adversarial,
            "out/logits_adv": logits,
        }

    result = run(model)
    attacked = clip_pixels(x + images(result["out/noise1"]))
    grads = reference_gradients(abstract(fixture), parameter, lambda m: loss(m, attacked)[0], fixture)
    return result | {f"out/grad_{short_name(name)}": gradient for name, gradient in grads.items()}


def short_name(name: str) -> str:
    """ "patch_embed.0.proj.weight" -> "patch_embed0_weight", as the fixtures call gradients."""
    return re.sub(r"\.(\d+)", r"\1", name.replace(".proj.", ".")).replace(".", "_")
