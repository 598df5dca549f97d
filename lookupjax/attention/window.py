"""Softmax attention within non-overlapping windows, without shift and position bias (DaViT's spatial part).

    x (b, h w, d) -> zeros at the bottom and right -> windows (b k, p q, d) -> attention in each -> back

The padding is added before the projections and is not masked: padded keys and values are the biases and
take part in the softmax, as in the published models.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.dense import token_numbers
from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads
from lookupjax.layers.conv import Window, pair
from lookupjax.layers.mlp import linear
from lookupjax.layers.position import flatten_grid
from lookupjax.layers.regularise import dropout
from lookupjax.layers.windows import from_windows, pad_to_multiple, to_windows


class WindowAttention(TokenMixer):
    """Multi-head attention in windows of `window` tokens (height, width).

    The taps see every window as an example of its own: weights are (b k, heads, p q, p q), and "places"
    (1, k, p q) says which tokens these are, see `attention.dense`.
    """

    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: Window = 7,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads, self.window, self.dropout = num_heads, pair(window), dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n m"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        self.check_call(context, mask, grid, causal)
        b, _, d = x.shape
        padded, _ = pad_to_multiple(x.reshape(b, *grid, d), self.window)
        windows = to_windows(padded, self.window)
        if self.tapped:
            numbers, _ = pad_to_multiple(token_numbers(grid), self.window)
            self.tap("places", to_windows(numbers, self.window)[..., 0])
        tokens = windows.reshape(-1, *windows.shape[2:])
        q, k, v = (
            self.tap(name, split_heads(project(tokens), self.num_heads))
            for name, project in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        scores = self.tap("scores", attention_scores(q, k))
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        mixed = self.out(merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights, v)))
        mixed = self.tap("output", mixed).reshape(windows.shape)
        full = from_windows(mixed, self.window, padded.shape[1:3])
        return flatten_grid(full[:, : grid[0], : grid[1]])


MIXER = WindowAttention
