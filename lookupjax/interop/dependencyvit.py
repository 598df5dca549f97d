"""DependencyViT: the names of the state dict of timm's pull request 2062."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.attention.reversed import ReversedAttention, dependency_mask
from lookupjax.interop.fixture import Fixture, fill, tuples
from lookupjax.interop.state_dict import BLOCK, StateDict, channels_first, images, torch_value
from lookupjax.layers.embed import token_grid
from lookupjax.layers.rngs import Keys
from lookupjax.models.dependencyvit import DependencyViT

NAMES = {
    "selector": "head_selector",
    "controller": "message_controller",
    "peg.conv": "peg.proj",
    "embed": "patch_embed.proj",
    "out": "proj",  # of the attention alone; inside a block BLOCK has renamed it
}
OWN = {  # reference argument -> ours, where only the name differs
    "in_chans": "channels",
    "num_classes": "num_classes",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
    "cpe_depth": "cpe_depth",
    "prune_layers": "prune_layers",
    "prune_ratio": "prune_ratio",
}
TEMPERATURES = ("head_selector_temperature", "temperature", "tau")


def pair(size: Any) -> tuple[int, int]:
    """A size as (height, width)."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def parameter(params: StateDict, path: str, shape: tuple[int, ...]) -> Any:
    """Our parameter at `path`, of `shape`, from the reference's state dict."""
    if path == "pos":
        return params["pos_embed"].reshape(shape)
    return torch_value(params, path, BLOCK | NAMES)


def attention_options(args: dict) -> dict[str, Any]:
    """Options of the attention that the reference's arguments name."""
    given = [args[name] for name in TEMPERATURES if name in args]
    options: dict[str, Any] = {"temperature": given[0]} if given else {}
    return options | ({"qk_norm": "head"} if args.get("qk_norm") else {})


def options(args: dict) -> dict[str, Any]:
    """Our constructor's arguments from the reference's."""
    size, patch = pair(args.get("img_size", 224)), pair(args.get("patch_size", 16))
    ours = {ours: tuples(args[theirs]) for theirs, ours in OWN.items() if args.get(theirs) is not None}
    if not args.get("init_values", 1e-6):
        ours["layer_scale"] = None
    pos_embed = args.get("pos_embed") not in (None, "", "none", False)
    grid = (size[0] // patch[0], size[1] // patch[1])
    return ours | attention_options(args) | dict(patch=patch, pos_grid=grid, pos_embed=pos_embed)


def build(fixture: Fixture) -> DependencyViT:
    """The model a fixture's config describes, with the fixture's parameters."""
    kwargs = options(fixture.config["args"])
    abstract = nnx.eval_shape(lambda: DependencyViT(**kwargs, rngs=Keys(0)))
    return fill(abstract, lambda path, shape: parameter(fixture.params, path, shape))


def outputs(fixture: Fixture) -> dict[str, jax.Array]:
    """Everything the fixture can expect, under its own keys."""
    if fixture.config["kind"] == "reversed_attention":
        return attention(fixture)
    return jax.jit(forward)(build(fixture), images(fixture.inputs["x"]))


def forward(model: DependencyViT, x: jax.Array) -> dict[str, jax.Array]:
    """The model's outputs; messages of later blocks sorted, since the order of kept tokens is free."""
    result = {}
    tokens, grid = model.tokenize(x), token_grid(x.shape[1:-1], model.patch)
    full = tokens.x.shape[1]
    for j, block in enumerate(model.blocks):
        tokens, layer = block(tokens, grid=grid)
        result[f"out/dep_mask{j}"] = layer.mask
        result[f"out/block{j}_m"] = jnp.sort(tokens.messages, axis=1) if j else tokens.messages
        if tokens.x.shape[1] == full:
            result[f"out/block{j}_out"] = channels_first(tokens.x.reshape(x.shape[0], *grid, -1))
    out = model(x)
    return result | {"out/logits": out["logits"], "out/pooled": out["features"]}


def attention(fixture: Fixture) -> dict[str, jax.Array]:
    """One reversed attention alone; its norms have PyTorch's default eps."""
    args = fixture.config["args"]
    dim, heads = args["dim"], args.get("num_heads", 8)
    kwargs = attention_options(args) | dict(qkv_bias=args.get("qkv_bias", False), eps=1e-5)
    abstract = nnx.eval_shape(lambda: ReversedAttention(dim, heads, **kwargs, rngs=Keys(0)))
    module = fill(abstract, lambda path, shape: parameter(fixture.params, path, shape))

    def run(module: ReversedAttention, x: jax.Array, m: jax.Array) -> dict[str, jax.Array]:
        y, messages, weights = module.send(x, jnp.broadcast_to(m, (x.shape[0], 1, 1, x.shape[1]))[:, 0, 0])
        return {
            "out/y": y,
            "out/m": messages[:, None, None],
            "out/dependency_mask": dependency_mask(weights),
        }

    x = fixture.inputs["x"]
    return jax.jit(run)(module, x, fixture.inputs.get("m", jnp.ones((1, 1, 1, 1))))
