"""LookupViT per frame with ViViT's temporal transformer on top: ours, nothing of the kind is published.

    clip (b, T, H, W, c) -> t frames of tubelets, every one a LookupViT's input (b t, 1, h, w, D)
      -> blocks of LookupViT, one set of weights and positions for all frames
      -> mean compressed tokens per frame (b, t, D) -> temporal transformer -> logits_compressed
         mean lookup tokens of all frames  (b, D)                         -> logits_lookup
    logits = their mean

The factorised encoder of ViViT (`vivit.py`) with LookupViT (`lookupvit.py`) in the place of its blocks over
space; `lookupvit_video_*` is the joint form. The compressed grid (height, width) is a matter of the call.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.embed import token_grid
from lookupjax.models.lookupvit import SIZES, LookupViT
from lookupjax.models.vivit import TemporalTransformer

VARIANTS: dict[str, dict] = {
    f"{size}16x2": SIZES[size] | dict(patch=(2, 16, 16), pos_grid=(16, 14, 14), compressed=(5, 5))
    for size in ("s", "b", "l")
}
VARIANTS["mu"] = SIZES["mu"] | dict(patch=(2, 8, 8), pos_grid=(4, 4, 4), compressed=(2, 2), temporal_depth=1)
INPUT_SIZE = {name: (32, 224, 224) for name in VARIANTS} | {"mu": (8, 32, 32)}
Grid = tuple[int, ...]


class LookupViViT(nnx.Module):
    """Factorised LookupViT for clips of any size that hold at least one tubelet.

    Args:
      patch: tubelet (frames, height, width).
      pos_grid: token grid (t, h, w): of the lookup positions of a frame and of the temporal ones.
      compressed: default grid (height, width) of a frame's compressed tokens; a call can ask for another.
      temporal_depth: blocks of the temporal transformer, which has the width and heads of the others.
      head: of the temporal transformer, see `ViViT`.
      options: of `LookupViT`.
    """

    loss_heads = ("logits_compressed", "logits_lookup")

    def __init__(
        self,
        *,
        patch: Grid = (2, 16, 16),
        channels: int = 3,
        pos_grid: Grid = (16, 14, 14),
        compressed: Grid = (5, 5),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 1000,
        temporal_depth: int = 4,
        head: str = "token",
        gelu: str = "tanh",
        eps: float = 1e-6,
        pos_init: float = 0.02,
        tubelet_init: str = "central",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        options: dict | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch, self.compressed, self.tubelet_init = tuple(patch), tuple(compressed), tubelet_init
        common = dict(eps=eps, gelu=gelu, pos_init=pos_init, dropout=dropout, drop_path=drop_path)
        common |= dict(dtype=dtype, rngs=rngs)
        self.frames = LookupViT(
            patch=self.patch,
            channels=channels,
            pos_grid=(1, *pos_grid[1:]),
            compressed=self.check_grid(compressed),
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            tubelet_init=tubelet_init,
            **common,
            **dict(options or {}),
        )
        self.temporal = TemporalTransformer(
            pos_grid[0],
            dim,
            temporal_depth,
            num_heads,
            head=head,
            pos_resize="zoom",
            mlp_ratio=4.0,
            attention_dropout=0.0,
            **common,
        )

    def check_grid(self, grid: Grid) -> Grid:
        """The grid of one frame's compressed tokens with its axis of time: (1, height, width).

        Raises:
          UserError: unless `grid` has two positive lengths.
        """
        if len(grid) != 2 or any(n < 1 for n in grid):
            raise UserError(
                "a compressed grid of this model is that of one frame, such as 5x5; got "
                + "x".join(map(str, grid))
            )
        return (1, *grid)

    def lookup_grid(self, size: tuple[int, ...]) -> Grid:
        """The grid of lookup tokens of inputs of `size`: the largest compressed grid they allow."""
        return token_grid(size, self.patch)

    def split(self, clips: Float[Array, "b t h w c"]) -> Float[Array, "b2 f h w c"]:
        """The stacks of frames of a tubelet's length, one after the other."""
        frames, _, _ = token_grid(clips.shape[1:-1], self.patch)
        clips = clips[:, : frames * self.patch[0]]
        return clips.reshape(-1, self.patch[0], *clips.shape[2:])

    def features(
        self,
        clips: Float[Array, "b t h w c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b t2 m d"], Float[Array, "b t2 n d"]]:
        """(compressed, lookup) tokens of each frame after the last block, before the final norms."""
        tokens = self._tokens(clips, compressed, rngs)[:2]
        return tuple(z.reshape(clips.shape[0], -1, *z.shape[1:]) for z in tokens)

    def _tokens(self, clips: Float[Array, "b t h w c"], compressed: Grid | None, rngs: nnx.Rngs | None):
        grid = self.check_grid(self.compressed if compressed is None else compressed)
        return self.frames.with_aux(self.split(clips), compressed=grid, rngs=rngs)

    def __call__(
        self,
        clips: Float[Array, "b t h w c"],
        *,
        compressed: Grid | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "..."]]:
        """Float32 {"logits", "logits_compressed", "logits_lookup", "features"}, as LookupViT's."""
        z_p, z_l, aux = self._tokens(clips, compressed, rngs)
        frames, batch = self.frames, clips.shape[0]
        per_frame = frames.pooled(z_p, frames.final_norm_p)
        features = self.temporal(per_frame.reshape(batch, -1, per_frame.shape[-1]), rngs=rngs)
        lookup = frames.pooled(z_l, frames.final_norm_l)
        lookup = lookup.reshape(batch, -1, lookup.shape[-1]).mean(1)
        logits_p, logits_l = frames.head_p(features), frames.head_l(lookup)
        out = {
            "features": features,
            "logits_compressed": logits_p,
            "logits_lookup": logits_l,
            "logits": 0.5 * (logits_p + logits_l),
        }
        trained = rngs is not None and frames.blocks[0].attn.has_aux_loss
        return out | ({"aux_loss": aux} if trained else {})


def create(variant: str, **overrides) -> LookupViViT:
    """Builds "s16x2", "b16x2", "l16x2"; any constructor argument can be overridden."""
    return LookupViViT(**(VARIANTS[variant] | overrides))
