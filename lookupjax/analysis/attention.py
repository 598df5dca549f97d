"""Where tokens look: attention on the input's token grid, read through the mixers' taps."""

import inspect
import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.analysis.attention_spread import frames_apart
from lookupjax.attention import record_taps
from lookupjax.errors import UserError
from lookupjax.layers.embed import token_grid


def footprints(
    model: nnx.Module,
    images: Float[Array, "b *size c"],
    compressed: tuple[int, ...] | None = None,
    *,
    block: int = -1,
) -> Float[Array, "b m ..."]:
    """Attention of one block, averaged over heads, as (b, m, *token grid).

    LookupViT: what each of the m compressed tokens gathers; the weights over the grid sum to one. Of a model
    per frame these are all frames' tokens, which look at nothing but their own frame.
    ViT: what the class token attends to or, of a model that averages its patches, what they attend to
    on average; m = 1. Attention to the class token and to registers is left out.

    Raises:
      UserError: when the model has no such attention weights, no such block, or no compressed tokens.
    """
    name = type(model).__name__
    call = {} if compressed is None else {"compressed": compressed}
    if call and "compressed" not in inspect.signature(type(model).__call__).parameters:
        raise UserError(f"{name} has no compressed tokens; leave out the compressed grid")
    if not hasattr(model, "patch"):
        raise UserError(f"{name} has no grid of patches on which attention could be shown")
    grid = token_grid(images.shape[1:-1], model.patch)
    prefix = getattr(model, "prefix", 0)
    tokens = prefix + math.prod(grid)
    _, taps = record_taps(model, images, **call)
    gathered = [weights for path, weights in taps.items() if "/gather/weights" in path]
    layers = gathered or [weights for weights in taps.values() if weights.shape[2:] == (tokens, tokens)]
    if not layers:
        raise UserError(f"{name} keeps no attention weights between its {tokens} tokens that could be shown")
    if not -len(layers) <= block < len(layers):
        raise UserError(f"{name} has {len(layers)} blocks with attention weights, none number {block}")
    weights = layers[block].mean(1)
    if gathered and len(weights) > len(images):  # one sequence per frame
        weights = jnp.asarray(frames_apart(weights[:, None], grid[0], prefix=0))[:, 0]
    if not gathered:
        first, last = (0, 1) if getattr(model, "head_kind", "") == "token" else (prefix, tokens)
        weights = weights[:, first:last, prefix:].mean(1, keepdims=True)
    return weights.reshape(*weights.shape[:2], *grid)
