"""MoH-DiT (arXiv 2410.11842): the diffusion transformer DiT (arXiv 2212.09748) with gated heads.

    latent (b, h, w, 4) -> 2x2 patches + sine-cosine positions (b, N, D)
    c = mlp(sines of t) + label embedding
    28 x [x += a1 * moh(LN x modulated by b1, c1);  x += a2 * mlp(LN x modulated by b2, c2)]
      (a, b, c)s = linear(silu(c)), zero at first: every block starts as the identity
    LN modulated -> linear -> (b, h, w, 8): predicted noise and its variance

The number of heads, of shared and of routed ones changes with the depth while a head keeps its width.
Reference: SkyworkAI/MoH, folder MoH-DiT; like it, this computes every head. The model takes latents and
gives no classes; its balance loss is the output "aux_loss" in training.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lookupjax.attention.moh import MoHAttention
from lookupjax.errors import UserError
from lookupjax.layers.embed import PatchEmbed
from lookupjax.layers.mlp import Mlp, linear
from lookupjax.models.published import Published


def each(*groups: tuple[int, int]) -> tuple[int, ...]:
    """each((8, 9), (16, 10)): 8 for nine layers, then 16 for ten."""
    return tuple(value for value, count in groups for _ in range(count))


XL = dict(dim=1152, head_dim=72, num_heads=each((8, 9), (16, 10), (24, 9)))
L = dict(dim=1024, head_dim=64, num_heads=each((8, 8), (16, 8), (24, 8)))
B = dict(dim=768, head_dim=64, num_heads=(12,) * 12)
S = dict(dim=384, head_dim=64, num_heads=(6,) * 12)
VARIANTS: dict[str, dict] = {
    "mu": dict(
        size=(8, 8), dim=32, head_dim=8, num_heads=(4, 5), mlp_ratio=2.0, shared=(4, 2), routed=(0, 2)
    ),
    "xl2_90": XL | dict(shared=each((8, 9), (16, 10), (16, 9)), routed=each((0, 19), (3, 9))),
    "xl2_75": XL | dict(shared=each((8, 9), (10, 10), (14, 9)), routed=each((0, 9), (2, 10), (2, 9))),
    "l2_90": L | dict(shared=each((8, 8), (16, 16)), routed=each((0, 16), (3, 8))),
    "l2_75": L | dict(shared=each((8, 16), (12, 8)), routed=each((0, 8), (4, 16))),
    "b2_90": B | dict(shared=each((6, 5), (7, 5), (12, 2)), routed=each((4, 10), (0, 2))),
    "b2_75": B | dict(shared=each((4, 2), (6, 8), (12, 2)), routed=each((2, 2), (3, 8), (0, 2))),
    "s2_90": S | dict(shared=each((3, 8), (6, 4)), routed=each((2, 8), (0, 4))),
    "s2_75": S | dict(shared=each((2, 2), (3, 8), (6, 2)), routed=each((1, 6), (2, 4), (0, 2))),
}
INPUT_SIZE = {name: options.get("size", (32, 32)) for name, options in VARIANTS.items()}
REPO = "SkyworkAI/MoH: measured"
FROZEN = "latents of 256-pixel images; the reference also counts the fixed position table, {:,} numbers"
PUBLISHED = {
    "xl2_90": Published(
        size=(32, 32), params=675_666_464 - 294_912, source=REPO, note=FROZEN.format(294_912)
    ),
    "xl2_75": Published(
        size=(32, 32), params=675_689_504 - 294_912, source=REPO, note=FROZEN.format(294_912)
    ),
    "l2_90": Published(size=(32, 32), params=458_512_416 - 262_144, source=REPO, note=FROZEN.format(262_144)),
    "b2_90": Published(size=(32, 32), params=130_638_368 - 196_608, source=REPO, note=FROZEN.format(196_608)),
    "b2_75": Published(size=(32, 32), params=130_638_368 - 196_608, source=REPO, note=FROZEN.format(196_608)),
    "s2_90": Published(size=(32, 32), params=32_997_152 - 98_304, source=REPO, note=FROZEN.format(98_304)),
    "s2_75": Published(size=(32, 32), params=32_998_688 - 98_304, source=REPO, note=FROZEN.format(98_304)),
}


def sine_cosine(position: np.ndarray, dim: int) -> np.ndarray:
    """(n,) -> (n, dim): sines, then cosines, of the position times 10000^(-2 i / dim)."""
    angle = position[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim / 2))[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def position_grid(grid: tuple[int, int], dim: int) -> np.ndarray:
    """(n, dim), fixed: the column in the first half of the channels, the row in the second."""
    row, column = (axis.reshape(-1) for axis in np.meshgrid(*map(np.arange, grid), indexing="ij"))
    halves = [sine_cosine(axis, dim // 2) for axis in (column, row)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def time_features(t: Float[Array, "b"], dim: int) -> Float[Array, "b d"]:
    """Cosines, then sines, of t times 10000^(-2 i / dim)."""
    frequency = jnp.exp(-math.log(10000.0) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angle = t[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def plain_norm(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """LayerNorm without scale and bias, eps 1e-6, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)


class Modulation(nnx.Module):
    """linear(silu(c)) cut into `parts` vectors per example; zero at first (adaLN-Zero)."""

    def __init__(self, dim: int, parts: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.linear = nnx.Linear(dim, parts * dim, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.parts = parts

    def __call__(self, c: Float[Array, "b d"]) -> list[Float[Array, "b 1 d"]]:
        return jnp.split(self.linear(jax.nn.silu(c))[:, None], self.parts, axis=-1)


def modulate(
    x: Float[Array, "b n d"], shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]
) -> Float[Array, "b n d"]:
    return plain_norm(x).astype(shift.dtype) * (1 + scale) + shift


class Block(nnx.Module):
    """DiT block with adaLN-Zero and gated heads."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, attention: dict, dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.attn = MoHAttention(dim, num_heads, **attention, **common)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu="tanh", **common)
        self.modulation = Modulation(dim, 6, **common)

    def __call__(
        self, x: Float[Array, "b n d"], c: Float[Array, "b d"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, ""]]:
        """(tokens, weighted balance loss)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        update, balance = self.attn.mix(modulate(x, shift1, scale1), rngs=rngs)
        x = x + gate1 * update
        return x + gate2 * self.mlp(modulate(x, shift2, scale2), rngs=rngs), balance


class MoHDiT(nnx.Module):
    """MoH-DiT noise predictor over latents of any size that is a multiple of the patch.

    Args:
      size: latent size (height, width) of the published models.
      num_heads, shared, routed: heads of each layer, of them always on, and chosen of the rest.
      head_dim: width of a head, dim / num_heads where None.
      classes: number of labels; one more stands for "no label".
      learn_sigma: also predict the variance, in as many channels again.
      label_dropout: share of the labels that training replaces by "no label".
      dtype: compute dtype; parameters, routing, softmax and norms stay float32.
    """

    loss_heads = ("eps",)

    def __init__(
        self,
        *,
        size: tuple[int, int] = (32, 32),
        patch: int = 2,
        channels: int = 4,
        dim: int = 768,
        num_heads: tuple[int, ...] = (12,) * 12,
        head_dim: int | tuple[int, ...] | None = None,
        shared: tuple[int, ...],
        routed: tuple[int, ...],
        mlp_ratio: float = 4.0,
        classes: int = 1000,
        learn_sigma: bool = True,
        label_dropout: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        depth = len(num_heads)
        widths = head_dim if isinstance(head_dim, tuple) else (head_dim,) * depth
        if not len(shared) == len(routed) == len(widths) == depth:
            raise UserError(f"num_heads, shared, routed (and head_dim) need one entry per layer, {depth}")
        self.size, self.patch, self.dim, self.classes = tuple(size), patch, dim, classes
        self.out_channels = channels * (2 if learn_sigma else 1)
        self.label_dropout, self.dtype = label_dropout, dtype
        common = dict(dtype=dtype, rngs=rngs)
        small = nnx.initializers.normal(0.02)
        self.embed = PatchEmbed((patch, patch), channels, dim, **common)
        self.time = nnx.List(nnx.Linear(d, dim, kernel_init=small, **common) for d in (256, dim))
        self.label = nnx.Param(small(rngs.params(), (classes + 1, dim)))
        self.blocks = nnx.List(
            Block(
                dim,
                num_heads[i],
                mlp_ratio=mlp_ratio,
                attention=dict(shared=shared[i], routed=routed[i], head_dim=widths[i]),
                **common,
            )
            for i in range(depth)
        )
        self.modulation = Modulation(dim, 2, **common)
        self.head = linear(dim, patch * patch * self.out_channels, **common)
        self.head.kernel = nnx.Param(jnp.zeros(self.head.kernel.shape))

    def condition(
        self, t: Float[Array, "b"], label: Int[Array, "b"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b d"]:
        """What every block is modulated by."""
        if rngs is not None and self.label_dropout:
            drop = jax.random.bernoulli(rngs.label_dropout(), self.label_dropout, label.shape)
            label = jnp.where(drop, self.classes, label)
        hidden = jax.nn.silu(self.time[0](time_features(t, 256)))
        return self.time[1](hidden) + self.label[...][label].astype(self.dtype)

    def tokens(
        self,
        latents: Float[Array, "b h w c"],
        c: Float[Array, "b d"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[list[Float[Array, "b n d"]], Float[Array, ""]]:
        """(tokens after every block, balance loss: mean over the layers that route)."""
        x = self.embed(latents)
        pos = jnp.asarray(position_grid(x.shape[1:3], self.dim)).astype(self.dtype)
        x = x.reshape(x.shape[0], -1, self.dim) + pos[None]
        out, total = [], jnp.zeros(())
        for block in self.blocks:
            x, balance = block(x, c, rngs=rngs)
            total = total + balance
            out.append(x)
        return out, total / max(self.routing_layers, 1)

    @property
    def routing_layers(self) -> int:
        return sum(block.attn.has_aux_loss for block in self.blocks)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        t: Float[Array, "b"] | None = None,
        label: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "..."]]:
        """{"eps": (b, h, w, channels) float32, the variance in the second half}, "aux_loss" in training.

        Args:
          t: diffusion times, by default 0.
          label: classes, by default none.
        """
        b, h, w, _ = latents.shape
        if h % self.patch or w % self.patch:
            raise UserError(f"latents of {h}x{w} cannot be cut into patches of {self.patch}x{self.patch}")
        t = jnp.zeros((b,)) if t is None else t
        label = jnp.full((b,), self.classes) if label is None else label
        c = self.condition(t, label, rngs)
        tokens, aux = self.tokens(latents, c, rngs=rngs)
        x = self.head(modulate(tokens[-1], *self.modulation(c))).astype(jnp.float32)
        p = self.patch
        x = x.reshape(b, h // p, w // p, p, p, self.out_channels).transpose(0, 1, 3, 2, 4, 5)
        out = {"eps": x.reshape(b, h, w, self.out_channels)}
        return out | ({"aux_loss": aux} if rngs is not None and self.routing_layers else {})


def create(variant: str, **overrides) -> MoHDiT:
    """Builds "xl2_90", "xl2_75", ..., "s2_75"; any constructor argument can be overridden."""
    return MoHDiT(**(VARIANTS[variant] | overrides))
