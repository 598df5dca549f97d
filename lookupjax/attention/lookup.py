"""LookupViT's multi-head bidirectional cross-attention, MHBC (arXiv 2407.12753, section 3).

One score matrix per block serves both directions: compressed tokens gather from lookup tokens with
A = softmax_N(Q K^T / sqrt(c)), and after their refinement write back through the same A, transposed.
The arithmetic is in the plain functions `gather` and `infuse`; the modules add projections and norms.
Where there are few compressed tokens, projecting all lookup tokens costs more than attending to them
unprojected: the `_absorbed` forms compute the same from the same parameters with the projections of values
(gathering) and outputs (infusion) folded into the products with A. `lookup_fused` has the whole path of the
lookup tokens in kernels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.mixer import TokenMixer
from lookupjax.attention.softmax import (
    QKNorm,
    attention_scores,
    check_heads,
    merge_heads,
    split_heads,
)
from lookupjax.errors import UserError
from lookupjax.layers.mlp import linear
from lookupjax.layers.norm import LayerNorm

REUSE = ("transpose", "renorm", "softmax")
IMPLEMENTATIONS = ("auto", "plain", "absorbed", "fused")
MACS_PER_ELEMENT = 240  # that an accelerator makes while it moves one bfloat16 value through memory


def together(
    first: nnx.Linear, second: nnx.Linear, x: Float[Array, "b n d"], num_heads: int
) -> tuple[Float[Array, "b n e"], Float[Array, "b n e"]]:
    """Two layers' outputs by one matrix product, which reads x once; the parameters stay two layers'.

    They are joined within each head: tensor parallelism splits the features by heads, and joined behind each
    other every device would need its neighbour's part.
    """

    def joined(name: str) -> Float[Array, "*d h c"]:
        both = [getattr(layer, name)[...] for layer in (first, second)]
        by_head = [y.reshape(*y.shape[:-1], num_heads, -1) for y in both]
        return jnp.concatenate(by_head, axis=-1).astype(x.dtype)

    both = jnp.einsum("bnd,dhc->bnhc", x, joined("kernel")) + joined("bias")[None, None]
    one, two = jnp.split(both, 2, axis=-1)
    return one.reshape(*x.shape[:-1], -1), two.reshape(*x.shape[:-1], -1)


def gather(weights: Float[Array, "b h m n"], v: Float[Array, "b h n c"]) -> Float[Array, "b h m c"]:
    """Information gathering, A V, with A = softmax of the scores over the n lookup tokens."""
    return jnp.einsum("bhmn,bhnc->bhmc", weights.astype(v.dtype), v)


def infusion_weights(
    scores: Float[Array, "b h m n"], weights: Float[Array, "b h m n"], reuse: str
) -> Float[Array, "b h m n"]:
    """The weights W of the write-back, W^T V': how A is reused.

    "transpose": A itself. "renorm": A / (sum_m A + 1e-6). "softmax": softmax over the compressed tokens
    of the same scores (the reading of vit-pytorch).
    """
    if reuse == "transpose":
        return weights
    if reuse == "renorm":
        return weights / (weights.sum(-2, keepdims=True) + 1e-6)
    if reuse == "softmax":
        return jax.nn.softmax(scores, axis=-2)
    raise UserError(f"reuse={reuse!r} is unknown; choose one of {REUSE}")


def infuse(weights: Float[Array, "b h m n"], v: Float[Array, "b h m c"]) -> Float[Array, "b h n c"]:
    """Global context infusion: W^T V', contracting over the compressed tokens without a transpose of W."""
    return jnp.einsum("bhmn,bhmc->bhnc", weights.astype(v.dtype), v)


def absorb(impl: str, n: int, m: int, dim: int, num_heads: int, *, copies: bool) -> bool:
    """Whether `impl` folds the projections into the attention for n lookup and m compressed tokens.

    Per image, projecting all n lookup tokens costs n dim^2 + n m dim products and moves n dim values that
    the folded form has no need of; that one costs h n m dim + m dim^2 and moves h m dim. "auto" compares
    these, at `MACS_PER_ELEMENT` for each value moved.

    Args:
      copies: counts four times as many moved values, those that XLA's programs for accelerators copy into the
        layouts of their products; in the folded form also n dim, twice, where 8 does not divide n, and
        h m dim where 8 does not divide h m. So it is compiled for H100 in bfloat16 (docs/benchmarks.md).

    Raises:
      UserError: for an unknown `impl`.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"cross_impl={impl!r} is unknown; choose one of {IMPLEMENTATIONS}")
    if impl in ("plain", "absorbed"):
        return impl == "absorbed"
    by_token, by_head = n * dim, num_heads * m * dim
    moved, moved_absorbed = by_token, by_head
    if copies:
        moved, moved_absorbed = 4 * moved, 4 * moved_absorbed
        moved_absorbed += 2 * by_token * (n % 8 > 0) + by_head * (num_heads * m % 8 > 0)
    plain = by_token * (dim + m) + MACS_PER_ELEMENT * moved
    return by_head * n + m * dim * dim + MACS_PER_ELEMENT * moved_absorbed < plain


def gather_absorbed(
    weights: Float[Array, "b h m n"],
    z: Float[Array, "b n d"],
    kernel: Float[Array, "d d"],
    bias: Float[Array, "d"],
) -> Float[Array, "b m d"]:
    """A V without V: as rows of A sum to one, A_h (z W_h + b_h) = (A_h z) W_h + b_h."""
    heads = weights.shape[1]
    mixed = jnp.einsum("bhmn,bnd->bhmd", weights.astype(z.dtype), z)
    per_head = kernel.astype(z.dtype).reshape(kernel.shape[0], heads, -1)
    merged = jnp.einsum("bhmd,dhc->bmhc", mixed, per_head)
    return merged.reshape(*merged.shape[:2], -1) + bias.astype(z.dtype)[None, None]


def infuse_absorbed(
    weights: Float[Array, "b h m n"],
    v: Float[Array, "b h m c"],
    kernel: Float[Array, "d d"],
    bias: Float[Array, "d"],
) -> Float[Array, "b n d"]:
    """concat_h(W_h^T V'_h) W_o + b as the sum over heads of W_h^T (V'_h W_o,h), plus b."""
    per_head = kernel.astype(v.dtype).reshape(weights.shape[1], -1, kernel.shape[1])
    projected = jnp.einsum("bhmc,hcd->bhmd", v, per_head)
    update = jnp.einsum("bhmn,bhmd->bnd", weights.astype(v.dtype), projected)
    return update + bias.astype(v.dtype)[None, None]


class Gather(TokenMixer):
    """Information gathering: the update of the compressed tokens, with the scores it was made from."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        pre_norm: bool = True,
        qk_norm: str = "full",
        out_proj: bool = True,
        impl: str = "auto",
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(dim, num_heads)
        self.num_heads, self.impl, self.eps = num_heads, impl, eps
        self.norm_p = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        self.norm_l = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        self.q = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.q_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.k_norm = QKNorm(dim, num_heads, qk_norm, eps=eps, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs) if out_proj else None

    def __call__(
        self, z_p: Float[Array, "b m d"], z_l: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b h m n"], Float[Array, "b h m n"]]:
        """Returns (update of z_p, scores, A); scores and A are float32."""
        if self.norm_p is not None:
            z_p, z_l = self.norm_p(z_p), self.norm_l(z_l)
        n, (m, d), copies = z_l.shape[1], z_p.shape[1:], z_p.dtype.itemsize == 2
        absorbed = self.tap_fn is None and absorb(self.impl, n, m, d, self.num_heads, copies=copies)
        q = self.tap("q", self.q_norm(self.q(z_p)))
        k, v = (self.k(z_l), None) if absorbed else together(self.k, self.v, z_l, self.num_heads)
        k = self.tap("k", self.k_norm(k))
        scores = self.tap("scores", attention_scores(q, k))
        weights = self.tap("weights", jax.nn.softmax(scores, axis=-1))
        if absorbed:
            mixed = gather_absorbed(weights, z_l, self.v.kernel[...], self.v.bias[...])
        else:
            mixed = merge_heads(gather(weights, self.tap("v", split_heads(v, self.num_heads))))
        update = self.out(mixed) if self.out is not None else mixed
        return self.tap("output", update), scores, weights


class Infuse(TokenMixer):
    """Global context infusion: the update of the lookup tokens through the gathering's own attention."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        pre_norm: bool = True,
        reuse: str = "transpose",
        out_proj: bool = True,
        impl: str = "auto",
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if reuse not in REUSE:
            raise UserError(f"reuse={reuse!r} is unknown; choose one of {REUSE}")
        self.num_heads, self.reuse, self.impl = num_heads, reuse, impl
        self.norm_p = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs) if pre_norm else None
        self.v = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, dtype=dtype, rngs=rngs) if out_proj else None

    def __call__(
        self,
        z_p: Float[Array, "b m d"],
        scores: Float[Array, "b h m n"],
        weights: Float[Array, "b h m n"],
    ) -> Float[Array, "b n d"]:
        """`z_p` are the refined compressed tokens; `scores` and `weights` come from `Gather`."""
        if self.norm_p is not None:
            z_p = self.norm_p(z_p)
        v = self.tap("v", split_heads(self.v(z_p), self.num_heads))
        weights = self.tap("weights", infusion_weights(scores, weights, self.reuse))
        n, (m, d), copies = weights.shape[-1], z_p.shape[1:], z_p.dtype.itemsize == 2
        absorbed = absorb(self.impl, n, m, d, self.num_heads, copies=copies)
        if absorbed and self.out is not None and self.tap_fn is None:
            return infuse_absorbed(weights, v, self.out.kernel[...], self.out.bias[...])
        mixed = merge_heads(infuse(weights, v))
        return self.tap("output", self.out(mixed) if self.out is not None else mixed)
