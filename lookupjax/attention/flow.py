"""Flow-Attention (Flowformer, ICML 2022, arXiv 2202.06258): linear attention as a flow network.

Values are sources j, results are sinks i, phi(q_i) . phi(k_j) are the capacities between them. Conserving
the flow into every sink makes the sources compete, conserving the flow out of every source decides how
much each sink keeps:

    I_i = 1 / <q_i, sum_j k_j>        O_j = 1 / <k_j, sum_i q_i>            inverted flows
    s_i = <q_i, sum_j k_j O_j>        c_j = clamp(<k_j, sum_i q_i I_i>)     conserved flows
    out_i = sigmoid(s_i L / S) I_i q_i . sum_j k_j^T (softmax_j(c_j) S v_j)

The causal form has prefix sums in place of all sums. Everything is linear in the number of tokens, in
float32: sums over thousands of tokens overflow half precision. Reference: thuml/Flowformer, whose folders
differ in phi, in the clamp and in `product_eps`; the defaults here are the core file's. Unlike the released
LRA code, the competition is always among sources.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import check_heads, merge_heads, split_heads
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear
from lookupjax.layers.regularise import dropout

PHIS = ("sigmoid", "relu")
CHUNK = 64  # tokens whose causal products are formed at once


def phi(x: Float[Array, "*s c"], kind: str) -> Float[Array, "*s c"]:
    """The non-negative map of queries and keys; "relu" (LRA) stays away from zero, which is divided by."""
    return jax.nn.sigmoid(x) if kind == "sigmoid" else jax.nn.relu(x) + 1e-6


def flows(
    q: Float[Array, "b h m c"],
    k: Float[Array, "b h n c"],
    *,
    causal: bool = False,
    clamp: float | None = 1.0,
    eps: float = 1e-6,
    product_eps: float = 0.0,
) -> tuple[Float[Array, "b h m"], Float[Array, "b h n"]]:
    """(gain of every sink, competition of every source): the weight of j in i is gain_i q_i.k_j p_j.

    Args:
      q, k: after phi, float32.
      clamp: bound of the conserved source flow: 1 (core, vision), 5 (NLP), 10 (RL) or None (time series).
      eps: added to both operands of every inner product.
      product_eps: added to every inner product (vision: 1e-6).
    """
    m, n = q.shape[2], k.shape[2]
    if causal and m != n:
        raise UserError(f"causal flow attention needs as many keys as queries, not {n} and {m}")
    t = jnp.arange(1, n + 1, dtype=jnp.float32)[None, None] if causal else jnp.ones((1, 1, 1))

    def total(x: Array) -> Array:
        return jnp.cumsum(x, axis=2) if causal else x.sum(2, keepdims=True)

    def inner(a: Array, b: Array) -> Array:
        return ((a + eps) * (b + eps)).sum(-1) + product_eps

    incoming = t / inner(q, total(k))
    outgoing = t / inner(k, total(q))
    sinks = inner(q, total(k * outgoing[..., None])) / t
    sources = inner(k, total(q * incoming[..., None])) / t
    if clamp is not None:
        sources = jnp.clip(sources, -clamp, clamp)
    if causal:
        competition = jnp.exp(sources - lax.cumlogsumexp(sources, axis=2)) * t
    else:
        competition = jax.nn.softmax(sources, axis=-1) * n
    return jax.nn.sigmoid(sinks * (m / n)) * incoming / t, competition


def causal_product(
    q: Float[Array, "b h n c"], k: Float[Array, "b h n c"], v: Float[Array, "b h n e"]
) -> Float[Array, "b h n e"]:
    """out_i = q_i . sum over j <= i of k_j^T v_j, a chunk at a time: one (c, e) state per chunk."""
    n = q.shape[2]
    pad = -n % CHUNK

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0)))
        return x.reshape(*x.shape[:2], -1, CHUNK, x.shape[-1])

    q, k, v = chunks(q), chunks(k), chunks(v)
    states = jnp.einsum("bhgjc,bhgje->bhgce", k, v)
    before = jnp.cumsum(states, axis=2) - states
    near = jnp.tril(jnp.einsum("bhgic,bhgjc->bhgij", q, k))
    out = jnp.einsum("bhgij,bhgje->bhgie", near, v) + jnp.einsum("bhgic,bhgce->bhgie", q, before)
    return out.reshape(*out.shape[:2], n + pad, out.shape[-1])[:, :, :n]


def flow_attention(
    q: Float[Array, "b h m c"],
    k: Float[Array, "b h n c"],
    v: Float[Array, "b h n e"],
    *,
    causal: bool = False,
    clamp: float | None = 1.0,
    eps: float = 1e-6,
    product_eps: float = 0.0,
) -> Float[Array, "b h m e"]:
    """The heads' results; q and k are after phi, everything is float32. Options: see `flows`."""
    gain, competition = flows(q, k, causal=causal, clamp=clamp, eps=eps, product_eps=product_eps)
    q, v = q * gain[..., None], v * competition[..., None]
    if causal:
        return causal_product(q, k, v)
    return jnp.einsum("bhmc,bhce->bhme", q, jnp.einsum("bhnc,bhne->bhce", k, v))


class FlowAttention(TokenMixer):
    """out(flow_attention(phi(q), phi(k), v)) with separate projections; no 1 / sqrt(c) anywhere.

    Args:
      phi: "sigmoid" or "relu".
      clamp, eps, product_eps: see `flows`.
      dropout: rate after the output projection.
    """

    supports_context = supports_causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        phi: str = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        product_eps: float = 0.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        if phi not in PHIS:
            raise UserError(f"phi={phi!r} is unknown; choose one of {PHIS}")
        self.num_heads, self.phi, self.dropout = num_heads, phi, dropout
        self.clamp, self.eps, self.product_eps = clamp, eps, product_eps
        self.q = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b m d"],
        context: Float[Array, "b n d"] | None = None,
        *,
        mask: Bool[Array, "#b #h m n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b m d"]:
        """Mixes x with itself, or with `context` when given. Class and other extra tokens are tokens too."""
        self.check_call(context, mask, grid, causal)
        source = x if context is None else context
        q, k, v = (
            split_heads(layer(tokens), self.num_heads).astype(jnp.float32)
            for layer, tokens in ((self.q, x), (self.k, source), (self.v, source))
        )
        q, k, v = self.tap("q", phi(q, self.phi)), self.tap("k", phi(k, self.phi)), self.tap("v", v)
        options = dict(causal=causal, clamp=self.clamp, eps=self.eps, product_eps=self.product_eps)
        if self.tapped:
            scores = self.tap("scores", jnp.einsum("bhmc,bhnc->bhmn", q, k))
            gain, competition = flows(q, k, **options)
            weights = scores * gain[..., None] * competition[:, :, None]
            weights = self.tap("weights", jnp.tril(weights) if causal else weights)
            mixed = jnp.einsum("bhmn,bhne->bhme", weights, v)
        else:
            mixed = flow_attention(q, k, v, **options)
        update = dropout(self.out(merge_heads(mixed).astype(x.dtype)), self.dropout, rngs)
        return self.tap("output", update)


MIXER = FlowAttention
