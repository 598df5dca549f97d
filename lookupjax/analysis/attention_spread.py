"""Maps of mixers that saw merged tokens, or parts of a clip, over all tokens again."""

import numpy as np
from jaxtyping import Array, Float


def unmerged_queries(
    weights: Float[np.ndarray, "b h t k"], source: Float[np.ndarray, "b t n"]
) -> Float[np.ndarray, "b h n k"]:
    """Every original token asks as the merged token that holds it; `source` is 1 where t holds n."""
    return np.einsum("btn,bhtk->bhnk", source, weights)


def unmerged_keys(
    weights: Float[np.ndarray, "b h q t"], source: Float[np.ndarray, "b t n"]
) -> Float[np.ndarray, "b h q n"]:
    """What a merged token is given is shared equally by the tokens that it holds: sums over keys stay."""
    shares = source / np.maximum(source.sum(-1, keepdims=True), 1.0)
    return np.einsum("btn,bhqt->bhqn", shares, weights)


def frames_apart(
    weights: Float[np.ndarray | Array, "bt h q k"], frames: int, prefix: int
) -> Float[np.ndarray | Array, "b h tq tk"]:
    """Maps within single frames over the whole clip, with zeros between frames; it can be traced.

    Args:
      prefix: tokens that stand before those of each frame; of the clip, those of all frames stand first.
    """
    _, heads, q, k = weights.shape
    apart = weights.reshape(-1, frames, heads, q, k).swapaxes(1, 2)
    whole = apart[..., None, :] * np.eye(frames, dtype=weights.dtype)[None, None, :, None, :, None]

    def order(count: int) -> np.ndarray:
        index = np.arange(frames * count).reshape(frames, count)
        return np.concatenate([index[:, :prefix].ravel(), index[:, prefix:].ravel()])

    return whole.reshape(-1, heads, frames * q, frames * k)[:, :, order(q)][..., order(k)]


def places_apart(weights: Float[np.ndarray, "bs h t t"], places: int) -> Float[np.ndarray, "b h ts ts"]:
    """Maps across the frames at single places over the whole clip, with zeros between places."""
    _, heads, frames, _ = weights.shape
    apart = weights.reshape(-1, places, heads, frames, frames)
    whole = np.zeros((len(apart), heads, frames * places, frames * places), weights.dtype)
    for place in range(places):
        whole[:, :, place::places, place::places] = apart[:, place]
    return whole
