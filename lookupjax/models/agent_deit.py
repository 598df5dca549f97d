"""Agent-DeiT (Agent Attention, ECCV 2024, arXiv 2312.08874): DeiT with agent attention.

    image (b, H, W, c) -> 16x16 patches, class token, positions (b, 1 + N, D)
      -> 12 x [x += agent_attention(LN x); x += mlp(LN x)] -> LN -> class token -> head

A ViT in timm's form (exact GELU) whose first `agent_layers` blocks have agent attention over the patches'
grid; the class token is a query and a key like the patches, but gives no agent and gets no convolution.
Reference: LeapLabTHU/Agent-Attention. Inputs of other sizes resize the positions and the agent biases.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lookupjax.errors import UserError
from lookupjax.layers.embed import token_grid
from lookupjax.layers.init import normal_linears
from lookupjax.models.published import Published
from lookupjax.models.vit import ViT

VARIANTS: dict[str, dict] = {
    "mu": dict(size=(32, 32), patch=(8, 8), dim=32, depth=2, num_heads=2, agents=(4,) * 4, agent_layers=1),
    "t": dict(dim=192, num_heads=3),
    "s": dict(dim=384, num_heads=6),
    "s_448": dict(dim=384, num_heads=6, size=(448, 448)),
    "b": dict(dim=768, num_heads=12, agents=(81,) * 4, agent_layers=4),
}
INPUT_SIZE = {"mu": (32, 32), "s_448": (448, 448)}
REPO = "LeapLabTHU/Agent-Attention: params and MACs measured, top-1 of the README"
PUBLISHED = {
    "t": Published(params=6_015_640, gmacs=1.176, top1=74.9, source=REPO),
    "s": Published(params=22_647_112, gmacs=4.443, top1=80.5, source=REPO),
    "s_448": Published(params=23_070_472, gmacs=17.7, top1=83.1, size=(448, 448), source=REPO),
    "b": Published(params=87_204_904, gmacs=17.6, top1=82.0, source=REPO),
}
GROUPS = (0, 1, 2, 2, 2, 3)  # of two blocks each: their entry of `agents`


class AgentDeiT(ViT):
    """Agent-DeiT classifier.

    Args:
      size: image size (height, width) that positions and agent biases are made for.
      agents: number of agent tokens of the blocks 1-2, 3-4, 5-10 and 11-12.
      agent_layers: leading blocks with agent attention, -1 for all; the others have softmax attention.
      attention_dropout: of the attention maps.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] = (224, 224),
        patch: tuple[int, int] = (16, 16),
        channels: int = 3,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        agents: tuple[int, int, int, int] = (49, 49, 49, 49),
        agent_layers: int = -1,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(agents) != 4:
            raise UserError(f"agents needs four entries, one for each group of blocks, not {agents}")
        grid = token_grid(size, patch)
        first = depth if agent_layers < 0 else min(agent_layers, depth)
        shared = dict(qkv_bias=qkv_bias, dropout=attention_dropout)
        groups = [GROUPS[min(i // 2, len(GROUPS) - 1)] for i in range(first)]
        super().__init__(
            patch=patch,
            channels=channels,
            pos_grid=grid,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            mlp_ratio=mlp_ratio,
            gelu="exact",
            attention=("agent",) * first + ("softmax",) * (depth - first),
            attention_options=(
                *(shared | dict(agents=agents[group], window=grid) for group in groups),
                *(shared for _ in range(depth - first)),
            ),
            dropout=dropout,
            drop_path=drop_path,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        normal_linears(self, rngs)


def create(variant: str, **overrides) -> AgentDeiT:
    """Builds "t", "s", "s_448", "b"; any constructor argument can be overridden."""
    return AgentDeiT(**(VARIANTS[variant] | overrides))
