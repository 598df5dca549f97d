"""Agent-PVT (Agent Attention, ECCV 2024, arXiv 2312.08874): the Pyramid Vision Transformer with agents.

    image (b, H, W, c)
    stage 1   4x4 patches -> LN, + positions -> (b, H/4 W/4, 64)      9 agents
    stage 2   2x2 patches -> LN, + positions -> (b, H/8 W/8, 128)     16
    stage 3   2x2 patches -> LN, + positions -> (b, H/16 W/16, 320)   49
    stage 4   2x2 patches -> LN, + positions -> (b, H/32 W/32, 512)   49
    mean over tokens -> head                                          no final norm, no class token
    block:  x += attention(LN x);  x += mlp(LN x)

A letter per stage chooses the attention: "A" agents, "B" PVT's softmax attention whose keys and values
come from a reduced map. Reference: LeapLabTHU/Agent-Attention. Inputs of other sizes resize the positions
and the agent biases.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.agent import AgentAttention
from lookupjax.attention.softmax import SoftmaxAttention
from lookupjax.errors import UserError
from lookupjax.layers.conv import conv
from lookupjax.layers.embed import PatchEmbed, token_grid
from lookupjax.layers.init import normal_linears
from lookupjax.layers.mlp import Mlp
from lookupjax.layers.norm import LayerNorm
from lookupjax.layers.position import flatten_grid, position_table, resize_grid
from lookupjax.layers.regularise import Rate, drop_path, drop_path_rates, dropout
from lookupjax.models.published import Published

VARIANTS: dict[str, dict] = {
    "mu": dict(
        size=(32, 32),
        dims=(16, 32),
        depths=(1, 1),
        num_heads=(1, 2),
        mlp_ratio=(2.0, 2.0),
        kinds="AB",
        agents=(4, 4),
        sr_ratios=(4, 2),
    ),
    "t": dict(depths=(2, 2, 2, 2)),
    "s": dict(depths=(3, 4, 6, 3)),
    "m": dict(depths=(3, 4, 18, 3)),
    "m_256": dict(depths=(3, 4, 18, 3), size=(256, 256)),
    "l": dict(depths=(3, 8, 27, 3)),
}
INPUT_SIZE = {"mu": (32, 32), "m_256": (256, 256)}
REPO = "LeapLabTHU/Agent-Attention: params and MACs measured, top-1 of the README"
PUBLISHED = {
    "t": Published(params=11_570_352, gmacs=2.000, top1=78.4, source=REPO),
    "s": Published(params=20_635_066, gmacs=3.978, top1=82.2, source=REPO),
    "m": Published(params=35_921_746, gmacs=7.035, top1=83.4, source=REPO),
    "m_256": Published(params=36_083_682, gmacs=9.189, top1=83.8, size=(256, 256), source=REPO),
    "l": Published(params=48_738_180, gmacs=10.4, top1=83.7, source=REPO),
}


class ReducedAttention(nnx.Module):
    """PVT's spatial-reduction attention: every token attends to a map `sr_ratio` times smaller."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        sr_ratio: int,
        qkv_bias: bool,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.sr_ratio = sr_ratio
        self.attn = SoftmaxAttention(
            dim, num_heads, qkv_bias=qkv_bias, dropout=dropout, dtype=dtype, rngs=rngs
        )
        if sr_ratio > 1:
            self.reduce = conv(dim, dim, sr_ratio, stride=sr_ratio, dtype=dtype, rngs=rngs)
            self.reduce_norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: tuple[int, int], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        if self.sr_ratio == 1:
            return self.attn(x, rngs=rngs)
        reduced = self.reduce(x.reshape(x.shape[0], *grid, x.shape[-1]))
        return self.attn(x, self.reduce_norm(flatten_grid(reduced)), rngs=rngs)


class Block(nnx.Module):
    """Pre-norm block."""

    def __init__(
        self,
        dim: int,
        attn: AgentAttention | ReducedAttention,
        *,
        hidden: int,
        eps: float,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attn_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.attn = attn
        self.mlp_norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, hidden, gelu="exact", dropout=dropout, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: tuple[int, int],
        drop: Rate = 0.0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b n d"]:
        update = dropout(self.attn(self.attn_norm(x), grid=grid, rngs=rngs), self.dropout, rngs)
        x = x + drop_path(update, drop, rngs)
        return x + drop_path(self.mlp(self.mlp_norm(x), rngs=rngs), drop, rngs)


class Stage(nnx.Module):
    """Patches of the map before with a norm, positions, blocks."""

    def __init__(
        self,
        d_in: int,
        dim: int,
        *,
        patch: int,
        grid: tuple[int, int],
        depth: int,
        num_heads: int,
        kind: str,
        agents: int,
        sr_ratio: int,
        mlp_ratio: float,
        qkv_bias: bool,
        attention_dropout: float,
        dropout: float,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        shared = dict(sr_ratio=sr_ratio, qkv_bias=qkv_bias, dropout=attention_dropout, **common)

        def attention() -> AgentAttention | ReducedAttention:
            if kind == "A":
                return AgentAttention(dim, num_heads, agents=agents, window=grid, **shared)
            return ReducedAttention(dim, num_heads, **shared)

        self.embed = PatchEmbed((patch, patch), d_in, dim, **common)
        self.norm = LayerNorm(dim, eps=1e-5, **common)
        self.pos = position_table((*grid, dim), rngs)
        block = dict(hidden=int(dim * mlp_ratio), eps=eps, dropout=dropout, **common)
        self.blocks = nnx.List(Block(dim, attention(), **block) for _ in range(depth))
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        rates: tuple[float, ...],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h2 w2 d"]:
        """The stage's map; the i-th block has stochastic depth `rates[i]`."""
        x = self.norm(self.embed(x))
        grid = x.shape[1:3]
        pos = resize_grid(self.pos[...], grid, antialias=False)
        x = dropout(flatten_grid(x + pos.astype(x.dtype)[None]), self.dropout, rngs)
        for block, rate in zip(self.blocks, rates):
            x = block(x, grid=grid, drop=rate, rngs=rngs)
        return x.reshape(x.shape[0], *grid, x.shape[-1])


class AgentPVT(nnx.Module):
    """Agent-PVT classifier.

    Args:
      size: image size (height, width) that positions and agent biases are made for.
      kinds: attention of each stage, "A" (agents) or "B" (PVT's).
      agents: number of agent tokens of each stage.
      agent_sr_ratios: reduction of keys and values in the stages of kind "A" (1 in the paper).
      sr_ratios: the same in those of kind "B".
      attention_dropout: of the attention maps.
      dtype: compute dtype; parameters, softmax, norms' statistics and resizing stay float32.
    """

    loss_heads = ("logits",)

    def __init__(
        self,
        *,
        size: tuple[int, int] = (224, 224),
        patches: tuple[int, ...] = (4, 2, 2, 2),
        channels: int = 3,
        dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        num_classes: int = 1000,
        mlp_ratio: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        kinds: str = "AAAA",
        agents: tuple[int, ...] = (9, 16, 49, 49),
        agent_sr_ratios: tuple[int, ...] = (1, 1, 1, 1),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        eps: float = 1e-6,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(kinds) != len(dims) or set(kinds) - set("AB"):
            raise UserError(f"kinds={kinds!r} needs a letter A or B for each of the {len(dims)} stages")
        self.depths, self.drop_path = tuple(depths), drop_path
        stages, grid = [], tuple(size)
        for i, dim in enumerate(dims):
            grid = token_grid(grid, (patches[i], patches[i]))
            stages.append(
                Stage(
                    dims[i - 1] if i else channels,
                    dim,
                    patch=patches[i],
                    grid=grid,
                    depth=depths[i],
                    num_heads=num_heads[i],
                    kind=kinds[i],
                    agents=agents[i],
                    sr_ratio=(agent_sr_ratios if kinds[i] == "A" else sr_ratios)[i],
                    mlp_ratio=mlp_ratio[i],
                    qkv_bias=qkv_bias,
                    attention_dropout=attention_dropout,
                    dropout=dropout,
                    eps=eps,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
        self.stages = nnx.List(stages)
        self.head = nnx.Linear(dims[-1], num_classes, rngs=rngs)
        normal_linears(self, rngs)

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The map after every stage, finest first."""
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        x, maps = images, []
        for stage, depth in zip(self.stages, self.depths):
            x = stage(x, rates=rates[:depth], rngs=rngs)
            rates = rates[depth:]
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens of the last stage (the model has no final norm): what another module attends to."""
        return flatten_grid(self.features(images, rngs=rngs)[-1])

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": mean of the last tokens, "logits"}."""
        pooled = self.encode(images, rngs=rngs).astype(jnp.float32).mean(1)
        return {"features": pooled, "logits": self.head(pooled)}


def create(variant: str, **overrides) -> AgentPVT:
    """Builds "t", "s", "m", "m_256", "l"; any constructor argument can be overridden."""
    return AgentPVT(**(VARIANTS[variant] | overrides))
