"""Mixture-of-Head attention, MoH (arXiv 2410.11842): every token weights the heads, and uses only some.

Multi-head attention is a sum over heads; MoH makes it a weighted one. Of H heads the first S are shared
(always on), the other E = H - S are routed: each token takes the best k of them. With x the block's
normalised input,

    (a1, a2) = 2 softmax(W_0 x)                          shared against routed
    shared_i = a1 S softmax_S(W_1 x)_i
    routed_i = a2 k g_i / sum over the best k of g,      g = softmax_E(W x); 0 for the others
    out      = projection of the heads, head i times its gate

so that equal logits give every active head the gate 1. A balance loss E sum_i mean(g_i) mean(chosen_i),
means over all tokens, keeps the routed heads in use; it is k when they are used equally.
Reference: SkyworkAI/MoH, which like this code computes every head. `router="query_norm"` is the form that
continues the training of LLaMA3: no parameters, and gates of 0 and 1.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import attention_scores, causal_mask, merge_heads
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear
from lookupjax.layers.regularise import dropout
from lookupjax.layers.rotary import rotate

ROUTERS = ("learned", "query_norm")
BALANCE = 0.01  # weight of the balance loss in the published recipes


def choose(probabilities: Float[Array, "b n e"], k: int) -> Float[Array, "b n e"]:
    """1 for each token's k most probable candidates, 0 for the others; constant for gradients."""
    best = jax.lax.top_k(probabilities, k)[1]
    chosen = jax.nn.one_hot(best, probabilities.shape[-1]).sum(-2)
    return jax.lax.stop_gradient(chosen)


def routed_gates(
    probabilities: Float[Array, "b n e"], chosen: Float[Array, "b n e"], k: int
) -> Float[Array, "b n e"]:
    """The chosen candidates' probabilities, rescaled to sum to k."""
    kept = probabilities * chosen
    return kept / jnp.maximum(kept.sum(-1, keepdims=True), jnp.finfo(jnp.float32).eps) * k


def balance_loss(probabilities: Float[Array, "b n e"], chosen: Float[Array, "b n e"]) -> Float[Array, ""]:
    """E sum_i mean(probability of i) mean(i is chosen): k for equal use, up to E."""
    candidates = probabilities.shape[-1]
    return candidates * (probabilities.mean((0, 1)) * chosen.mean((0, 1))).sum()


def query_norm_probabilities(q: Float[Array, "b h n c"], shared: int) -> Float[Array, "b n e"]:
    """Softmax over candidates of their queries' L2 norms in units of the norms' standard deviation."""
    norms = jnp.linalg.norm(q[:, shared:].astype(jnp.float32), axis=-1).swapaxes(1, 2)
    return jax.nn.softmax(norms / norms.std(-1, ddof=1, keepdims=True), axis=-1)


def check_routing(num_heads: int, shared: int, routed: int) -> None:
    """Raises UserError unless every head is either shared or a candidate of the routing."""
    if shared < 0 or routed < 0 or shared + routed > num_heads or (routed == 0 and shared < num_heads):
        raise UserError(
            f"of {num_heads} heads, shared={shared} and routed={routed} cannot be used: shared + routed is "
            f"at most {num_heads}, and without routed heads all must be shared"
        )


class HeadRouter(nnx.Module):
    """Gates of all heads from the normalised tokens: two-stage weights, shared heads first."""

    def __init__(self, dim: int, num_heads: int, shared: int, routed: int, *, rngs: nnx.Rngs):
        check_routing(num_heads, shared, routed)
        self.num_shared, self.num_routed = shared, routed
        router = dict(bias=False, rngs=rngs)
        self.routed = linear(dim, num_heads - shared, **router) if routed else None
        self.split = linear(dim, 2, **router) if routed and shared else None
        self.shared = linear(dim, shared, **router) if shared > 1 else None

    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n h"], Float[Array, ""]]:
        """Returns float32 (gates, balance loss); the loss is 0 when no head is routed."""
        x = x.astype(jnp.float32)
        parts, balance = [], jnp.zeros(())
        if self.shared is not None:
            parts.append(jax.nn.softmax(self.shared(x), axis=-1) * self.num_shared)
        elif self.num_shared:
            parts.append(jnp.ones((*x.shape[:2], 1)))
        if self.routed is not None:
            probabilities = jax.nn.softmax(self.routed(x), axis=-1)
            chosen = choose(probabilities, self.num_routed)
            parts.append(routed_gates(probabilities, chosen, self.num_routed))
            balance = balance_loss(probabilities, chosen)
        if self.split is not None:
            stage = jax.nn.softmax(self.split(x), axis=-1) * 2.0
            parts = [part * stage[..., i : i + 1] for i, part in enumerate(parts)]
        return jnp.concatenate(parts, axis=-1), balance


class MoHAttention(TokenMixer):
    """Softmax attention whose heads are gated per query token.

    Args:
      shared, routed: heads that are always on, and further ones that each token chooses. Default: half
        and a quarter of the heads.
      router: "learned" (two-stage weights) or "query_norm" (LLaMA3: norms of the queries, gates 0 or 1).
      balance: weight of the balance loss; 0 for none.
      head_dim: width of a head, default dim / num_heads (MoH-DiT fixes it while the number of heads varies).
      kv_heads: keys and values have this many heads, each for a group of query heads.
      rope_theta: base of a rotary position embedding, applied after routing; None for none.
    """

    supports_context = supports_mask = supports_causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        shared: int | None = None,
        routed: int | None = None,
        router: str = "learned",
        balance: float = BALANCE,
        head_dim: int | None = None,
        kv_heads: int | None = None,
        rope_theta: float | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if head_dim is None and dim % num_heads:
            raise UserError(f"dim={dim} cannot be split into num_heads={num_heads} equal heads")
        if router not in ROUTERS:
            raise UserError(f"router={router!r} is unknown; choose one of {ROUTERS}")
        kv_heads = num_heads if kv_heads is None else kv_heads
        if num_heads % kv_heads:
            raise UserError(f"num_heads={num_heads} is no multiple of kv_heads={kv_heads}")
        shared = num_heads // 2 if shared is None else shared
        routed = math.ceil(num_heads / 4) if routed is None else routed
        check_routing(num_heads, shared, routed)
        if router == "query_norm" and (routed == 0 or num_heads - shared < 2):
            raise UserError("router='query_norm' needs routed heads, and two candidates to choose from")
        width = head_dim or dim // num_heads
        self.num_heads, self.kv_heads, self.width = num_heads, kv_heads, width
        self.num_shared, self.num_routed, self.balance = shared, routed, balance
        self.rope_theta, self.dropout = rope_theta, dropout
        self.has_aux_loss = routed > 0 and balance > 0
        self.router = HeadRouter(dim, num_heads, shared, routed, rngs=rngs) if router == "learned" else None
        projection = dict(bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.q = linear(dim, num_heads * width, **projection)
        self.k = linear(dim, kv_heads * width, **projection)
        self.v = linear(dim, kv_heads * width, **projection)
        self.out = linear(num_heads * width, dim, bias=out_bias, dtype=dtype, rngs=rngs)

    def heads(self, x: Float[Array, "b n d"], number: int) -> Float[Array, "b h n c"]:
        return x.reshape(*x.shape[:2], number, self.width).swapaxes(1, 2)

    def gates(
        self, x: Float[Array, "b n d"], q: Float[Array, "b h n c"]
    ) -> tuple[Float[Array, "b n h"], Float[Array, ""]]:
        """(gates, balance loss) of the queries' tokens; q before any rotation."""
        if self.router is not None:
            return self.router(x)
        probabilities = query_norm_probabilities(q, self.num_shared)
        chosen = choose(probabilities, self.num_routed)
        always = jnp.ones((*chosen.shape[:2], self.num_shared))
        return jnp.concatenate([always, chosen], axis=-1), balance_loss(probabilities, chosen)

    def mix(
        self,
        x: Float[Array, "b m d"],
        context: Float[Array, "b n d"] | None = None,
        *,
        mask: Bool[Array, "#b #h m n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], Float[Array, ""]]:
        """(output, weighted balance loss); class and other extra tokens route like all tokens."""
        self.check_call(context, mask, grid, causal)
        source = x if context is None else context
        q = self.tap("q", self.heads(self.q(x), self.num_heads))
        k = self.tap("k", self.heads(self.k(source), self.kv_heads))
        v = self.tap("v", self.heads(self.v(source), self.kv_heads))
        gates, balance = self.gates(x, q)
        gates = self.tap("gates", gates)
        if self.rope_theta is not None:
            last, first = k.shape[2], k.shape[2] - q.shape[2]
            q = rotate(q, jnp.arange(first, last, dtype=jnp.float32), self.rope_theta)
            k = rotate(k, jnp.arange(last, dtype=jnp.float32), self.rope_theta)
        group = self.num_heads // self.kv_heads
        k, v = jnp.repeat(k, group, axis=1), jnp.repeat(v, group, axis=1)
        scores = self.tap("scores", attention_scores(q, k))
        mask = causal_mask(scores, mask) if causal else mask
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        weights = dropout(weights, self.dropout, rngs).astype(v.dtype)
        heads = jnp.einsum("bhmn,bhnc->bhmc", weights, v)
        heads = self.tap("heads", heads * gates.swapaxes(1, 2)[..., None].astype(v.dtype))
        return self.tap("output", self.out(merge_heads(heads))), self.balance * balance

    def __call__(
        self, x: Float[Array, "b m d"], context: Float[Array, "b n d"] | None = None, **call
    ) -> Float[Array, "b m d"]:
        """The output alone; `call` as of `mix`, which training needs unless `balance` is 0."""
        self.check_aux(call.get("rngs"))
        return self.mix(x, context, **call)[0]


MIXER = MoHAttention
