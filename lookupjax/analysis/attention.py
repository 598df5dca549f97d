"""Where tokens look: attention on the input's token grid, read through the mixers' taps."""

import inspect
import re

import jax
from flax import nnx
from jaxtyping import Array, Float

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

    LookupViT: what each of the m compressed tokens gathers; the weights over the grid sum to one.
    ViT: what the class token attends to or, for a model that averages its tokens, the mean over the
    patches of what they attend to; m = 1. What goes to the class token and registers is left out.

    Raises:
      UserError: when the model has no such attention weights, no such block, or no compressed tokens.
    """
    name = type(model).__name__
    call = {} if compressed is None else {"compressed": compressed}
    if call and "compressed" not in inspect.signature(type(model).__call__).parameters:
        raise UserError(f"{name} has no compressed tokens; leave out the compressed grid")
    if not hasattr(model, "patch"):
        raise UserError(f"{name} has no attention over a grid of patches that could be shown")
    grid = token_grid(images.shape[1:-1], model.patch)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, images):
        taps = record_taps(nnx.merge(graphdef, state, copy=True), images, **call)[1]
        return _at_block(_gathering(taps) or _self_attention(taps), block, name).mean(1)

    weights = run(state, images)  # (b, queries, keys)
    if not _is_gathering(model):
        weights = _read_by_head(model, weights)
    if weights.shape[-1] != grid_size(grid):
        raise UserError(f"{name} attends to {weights.shape[-1]} tokens, not to the {grid} grid of its patches")
    return weights.reshape(*weights.shape[:2], *grid)
