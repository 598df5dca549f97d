"""Where tokens look: attention maps on the input's token grid, read through the mixers' taps."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.attention import record_taps
from lookupjax.errors import UserError
from lookupjax.layers.embed import token_grid


def footprints(
    model: nnx.Module, images: Float[Array, "b *size c"], compressed: tuple[int, ...] | None = None
) -> Float[Array, "b m ..."]:
    """Attention of the last block, averaged over heads, as (b, m, *token grid).

    LookupViT: what each of the m compressed tokens gathers. ViT: what the class token (or, without one,
    the mean over all tokens) attends to; m = 1.

    Raises:
      UserError: when the model's attention has no weights to show.
    """
    call = {} if compressed is None else {"compressed": compressed}
    _, taps = record_taps(model, images, names=("weights",), **call)
    if not taps:
        raise UserError(f"{type(model).__name__} has no attention weights that could be shown")
    gathered = [weights for path, weights in taps.items() if "gather/" in path]
    weights = (gathered or list(taps.values()))[-1].mean(1)
    if not gathered:
        prefix = getattr(model, "prefix", 0)
        rows = weights[:, :1] if prefix else weights.mean(1, keepdims=True)
        weights = rows[..., prefix:]
    return jnp.reshape(weights, (*weights.shape[:2], *token_grid(images.shape[1:-1], model.patch)))
