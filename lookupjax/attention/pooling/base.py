"""What all poolings share: the base class and learned queries."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, check_heads, merge_heads, split_heads


class Pooling(TokenMixer):
    """Base of the poolings: `width` of the pooled vector, and softmax attention with a "weights" tap.

    It is a `TokenMixer` for the taps only; call it as `pool(tokens, grid=None, rngs=None)`.
    """

    width: int

    def attend(
        self,
        q: Float[Array, "b m d"],
        k: Float[Array, "b n d"],
        v: Float[Array, "b n e"],
        num_heads: int,
    ) -> Float[Array, "b m e"]:
        """softmax(q k^T / sqrt(d / heads)) v per head, weights in float32."""
        q, k, v = (split_heads(t, num_heads) for t in (q, k, v))
        weights = self.tap("weights", jax.nn.softmax(attention_scores(q, k), axis=-1))
        return merge_heads(jnp.einsum("bhmn,bhnc->bhmc", weights.astype(v.dtype), v))


class Heads(Pooling):
    """A pooling with several attention heads."""

    def set_heads(self, dim: int, num_heads: int) -> None:
        check_heads(dim, num_heads)
        self.width, self.num_heads = dim, num_heads


def learned_query(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    """Query tokens from N(0, 0.02)."""
    return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))


def repeat(query: nnx.Param, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """The learned query tokens (m, d) once per example of x, in its dtype."""
    value = query[...].astype(x.dtype)
    return jnp.broadcast_to(value[None], (x.shape[0], *value.shape))
