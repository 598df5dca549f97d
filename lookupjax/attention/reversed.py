"""Reversed attention (DependencyViT, arXiv 2304.03282): tokens send along their attention, not gather.

    forward attention   a[h, i, j] = softmax over j of q_i k_j / sqrt(c)     child i chooses its parents j
    head selector       p[h, i]    = softmax over h of (W_p x_i) / tau       which head child i speaks through
    message controller  m[i]       = m_before[i] * sigmoid(MLP(x_i))         how much it still has to say
    dependency          r[h, j, i] = a[h, i, j] p[h, i] m[i]                 rows receive, columns send
    output              y_j        = out(concat over h of sum over i of r[h, j, i] v_i)

Everything child i sends, over heads and parents, sums to m[i]; what a parent receives is not normalised.
The sum of r over heads is the soft dependency mask. m is cumulative over layers: `send` takes and returns
it, while a plain call as a token mixer starts every layer from m = 1.

Reference: the re-implementation in timm's pull request 2062; the authors' code is not public.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import QKNorm, attention_scores, check_heads, merge_heads, split_heads
from lookupjax.layers.mlp import gelu, linear
from lookupjax.layers.regularise import dropout


def reverse(
    attention: Float[Array, "b h n n"], selector: Float[Array, "b h n"], messages: Float[Array, "b n"]
) -> Float[Array, "b h n n"]:
    """r[h, j, i] = a[h, i, j] p[h, i] m[i]: rows are receivers, columns senders."""
    return jnp.swapaxes(attention, -1, -2) * (selector * messages[:, None])[:, :, None]


def dependency_mask(weights: Float[Array, "b h n n"]) -> Float[Array, "b n n"]:
    """The soft dependency mask (receiver, sender): reversed attention summed over heads."""
    return weights.sum(1)


class MessageController(nnx.Module):
    """sigmoid(W_2 gelu(W_1 x)): the share of its message that each token passes on; float32."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = linear(dim, dim // 2, bias=False, dtype=dtype, rngs=rngs)
        self.fc2 = linear(dim // 2, 1, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n"]:
        return jax.nn.sigmoid(self.fc2(gelu("exact")(self.fc1(x)))[..., 0].astype(jnp.float32))


class ReversedAttention(TokenMixer):
    """Attention whose transpose carries the values.

    The tap "weights" is the reversed attention r (b, h, receivers, senders), "scores" the forward one
    before its softmax (b, h, children, parents), "messages" is m.

    Args:
      temperature: tau of the head selector (0.1 by appendix D.1 of the paper, as the reference says).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        qk_norm: str = "none",
        temperature: float = 0.1,
        eps: float = 1e-6,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads, self.temperature, self.dropout = num_heads, temperature, dropout
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.q_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.k_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.selector = linear(dim, num_heads, bias=False, dtype=dtype, rngs=rngs)
        self.controller = MessageController(dim, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)

    def send(
        self,
        x: Float[Array, "b n d"],
        messages: Float[Array, "b n"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n"], Float[Array, "b h n n"]]:
        """(what every token receives, m after this layer, reversed attention) given m before it."""
        q = self.tap("q", self.q_norm(self.q(x)))
        k = self.tap("k", self.k_norm(self.k(x)))
        v = self.tap("v", split_heads(self.v(x), self.num_heads))
        forward = jax.nn.softmax(self.tap("scores", attention_scores(q, k)), axis=-1)
        forward = dropout(forward, self.dropout, rngs)
        choice = self.selector(x).astype(jnp.float32) / self.temperature
        selector = jax.nn.softmax(choice, axis=-1).transpose(0, 2, 1)
        messages = self.tap("messages", messages * self.controller(x))
        weights = self.tap("weights", reverse(forward, selector, messages))
        received = merge_heads(jnp.einsum("bhji,bhic->bhjc", weights.astype(v.dtype), v))
        return self.tap("output", self.out(received)), messages, weights

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        *,
        mask: Bool[Array, "#b #h n n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        """Mixes x with itself, every token with its full message (m = 1 before this layer)."""
        self.check_call(context, mask, grid, causal)
        return self.send(x, jnp.ones(x.shape[:2]), rngs=rngs)[0]


MIXER = ReversedAttention
