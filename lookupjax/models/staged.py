"""The common part of convolutional classifiers: a stem, stages, the mean of the last map, a linear head."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.layers.regularise import drop_path_rates, dropout


class Staged(nnx.Module):
    """Base class. A network sets the attributes and defines `run_stem`; with it and `run_stage` another model
    can work between the stages. A network whose blocks are called otherwise defines `run_stage` too.

    Attributes:
      widths: channels of the stem's map and of every stage's.
      head: linear layer, or None for a backbone.
      dropout: rate before the head.
      stages, depths: blocks of every stage, called as block(x, rate=..., rngs=...), and their numbers.
      drop_path: stochastic-depth rate of the last block.
    """

    loss_heads = ("logits",)

    widths: tuple[int, ...]
    head: nnx.Linear | None
    dropout: float
    stages: nnx.List
    depths: tuple[int, ...]
    drop_path: float

    def run_stem(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The map that stage 0 reads."""
        raise NotImplementedError

    def run_stage(
        self, index: int, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Stage `index`, counted from 0; the stochastic-depth rate grows over the blocks of all stages."""
        rates = drop_path_rates(self.drop_path, sum(self.depths))[sum(self.depths[:index]) :]
        for block, rate in zip(self.stages[index], rates):
            x = block(x, rate=rate, rngs=rngs)
        return x

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """The output of every stage: maps at 1/4, 1/8, 1/16 and 1/32 of the resolution."""
        x, maps = self.run_stem(images, rngs=rngs), []
        for index in range(len(self.widths) - 1):
            x = self.run_stage(index, x, rngs=rngs)
            maps.append(x)
        return maps

    def encode(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        """The last map's positions as tokens, row by row."""
        x = self.features(images, rngs=rngs)[-1]
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def classify(self, pooled: Float[Array, "b d"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Logits of the pooled last map."""
        return self.head(dropout(pooled, self.dropout, rngs))

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Float32 {"features": (b, d) mean of the last map, "logits": (b, classes) if there is a head}."""
        pooled = self.features(images, rngs=rngs)[-1].astype(jnp.float32).mean((1, 2))
        if self.head is None:
            return {"features": pooled}
        return {"features": pooled, "logits": self.classify(pooled, rngs=rngs)}
