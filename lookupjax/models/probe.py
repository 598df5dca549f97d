"""A trained pooling and classifier on a frozen backbone: Efficient Probing and rivals (arXiv 2506.10178).

    image -> frozen backbone, after its last block, no final norm -> tokens (b, n, d), no gradient
      -> pooling (b, width) -> BatchNorm without scale and shift -> linear -> logits

Reference: billpsomas/efficient-probing. `pooling` is any of `lookupjax.attention.pooling`: "ep", the
other attentive probes, or "token" / "gap" for linear probing. The backbone is any model of this room: of
hierarchical ones the last feature map is read, of LookupViT the lookup tokens. It always computes as in
evaluation. `configs/probe.py` loads it and freezes its parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lookupjax.attention.pooling import POOLINGS, create_pooling
from lookupjax.errors import UserError
from lookupjax.layers.init import torch_linear
from lookupjax.layers.norm import BatchNorm
from lookupjax.models import create_model, native_size

VARIANTS: dict[str, dict] = {
    "mu": dict(backbone="vit_mu", pooling="ep", pooling_options=dict(num_queries=4)),
} | {name: dict(backbone="vit_b16", pooling=name, prefix=name == "token") for name in POOLINGS}
INPUT_SIZE = {"mu": (32, 32)}
Grid = tuple[int, ...] | None


class Classifier(nnx.Module):
    """BatchNorm without scale and shift, then a linear layer, in float32."""

    def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(width, eps=1e-6, affine=False, rngs=rngs)
        self.head = torch_linear(width, num_classes, bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, pooled: Float[Array, "b e"], *, train: bool = False) -> Float[Array, "b k"]:
        return self.head(self.norm(pooled, train=train))


class Probe(nnx.Module):
    """A probe of a frozen backbone.

    Args:
      backbone, backbone_options: name and options of `create_model`.
      pooling, pooling_options: see `lookupjax.attention.pooling`.
      prefix: whether the pooling also sees the class token and registers before the patches.
    """

    loss_heads = ("logits",)
    frozen = ("^backbone/",)  # for config.frozen: no gradient reaches these parameters

    def __init__(
        self,
        *,
        backbone: str = "vit_b16",
        backbone_options: dict | None = None,
        pooling: str = "ep",
        pooling_options: dict | None = None,
        prefix: bool = False,
        channels: int = 3,
        num_classes: int = 1000,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = dict(channels=channels) | dict(backbone_options or {})
        self.backbone = create_model(backbone, dtype=dtype, rngs=rngs, **options)
        self.prefix = prefix
        if prefix and not getattr(self.backbone, "prefix", 0):
            raise UserError(f"{backbone} has no class token for pooling={pooling!r}; set prefix=False")
        native = (*native_size(backbone), channels)
        tokens = jax.eval_shape(lambda x: self.tokens(x)[0], jax.ShapeDtypeStruct((1, *native), jnp.float32))
        self.pool = create_pooling(
            pooling, tokens.shape[-1], dtype=dtype, rngs=rngs, **dict(pooling_options or {})
        )
        self.classifier = Classifier(self.pool.width, num_classes, rngs=rngs)

    def features(self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None) -> Any:
        """The backbone's own features."""
        return self.backbone.features(images)

    def tokens(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b n d"], Grid]:
        """The frozen tokens and, where the backbone gives a map, their grid."""
        features = jax.lax.stop_gradient(self.backbone.features(images))
        last = features[-1] if isinstance(features, tuple | list) else features
        if last.ndim > 3:
            return last.reshape(last.shape[0], -1, last.shape[-1]), last.shape[1:-1]
        return (last if self.prefix else last[:, getattr(self.backbone, "prefix", 0) :]), None

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns {"features": (b, width) pooled, "logits": (b, classes)}, float32."""
        tokens, grid = self.tokens(images)
        pooled = self.pool(tokens, grid=grid, rngs=rngs).astype(jnp.float32)
        return {"features": pooled, "logits": self.classifier(pooled, train=rngs is not None)}


def create(variant: str, **overrides) -> Probe:
    """Builds "ep", "simpool", ...; any constructor argument can be overridden."""
    return Probe(**(VARIANTS[variant] | overrides))
