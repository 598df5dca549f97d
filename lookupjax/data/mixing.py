"""What is done to a batch on the device, inside the training step: normalisation, MixUp and CutMix.

MixUp is arXiv 1710.09412, CutMix arXiv 1905.04899. Example i is mixed with example i - 1 of the batch
(cyclically); labels become distributions (b, k):

    mixup   x = l x_i + (1 - l) x_j                                 l ~ Beta(a, a)
    cutmix  x = x_i outside a box, x_j inside it; l = 1 - area of the box, which is the rectangle of
            sides sqrt(1 - l') about a uniform centre, cut off at the border, l' ~ Beta(a, a)
    label   l y_i + (1 - l) y_j

Both are one formula with a weight map: x = w x_i + (1 - w) x_j, l = mean of w. Label smoothing is the
task's and commutes with mixing.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import betaincinv

from lookupjax.data.transforms import Normalize
from lookupjax.errors import UserError

Batch = dict[str, Array]


def normalize_images(images: Array, normalize: Normalize) -> Float[Array, "*b h w c"]:
    """What `Normalize` does to one image, for a batch."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.reshape(jnp.asarray(x, jnp.float32), shape) for x in (normalize.mean, normalize.std))
    return (images.astype(jnp.float32) * (1.0 / 255.0) - mean) / std


def draw_beta(a: float, n: int, key: jax.Array) -> Float[Array, "n"]:
    """n draws of Beta(a, a), by inversion: linear interpolation of 4,097 quantiles.

    (`jax.random.beta` samples by rejection, which takes seven seconds to compile for the CPU.)
    """
    u = np.linspace(0.0, 1.0, 4097)
    quantiles = betaincinv(a, a, u).astype(np.float32)
    return jnp.interp(jax.random.uniform(key, (n,)), u.astype(np.float32), quantiles)


def cutmix_weights(lam: Float[Array, "n"], height: int, width: int, key: jax.Array) -> Float[Array, "n h w"]:
    """0 inside each example's box, 1 outside it; the boxes have area share 1 - lam before the border cut."""
    key_y, key_x = jax.random.split(key)
    inside = []
    for k, side in ((key_y, height), (key_x, width)):
        half = (side * jnp.sqrt(1.0 - lam)).astype(jnp.int32) // 2
        centre = jax.random.randint(k, lam.shape, 0, side)
        place = jnp.arange(side)[None]
        inside.append((place >= (centre - half)[:, None]) & (place < (centre + half)[:, None]))
    return 1.0 - (inside[0][:, :, None] & inside[1][:, None, :]).astype(jnp.float32)


@dataclass(frozen=True)
class Mixing:
    """mix(batch, key): the batch with "image" and "label" mixed.

    Args:
      mixup, cutmix: the Beta parameter a of each; 0 leaves it out.
      switch: probability of CutMix where both are on.
      probability: of mixing at all.
      per: "batch" draws once for all (timm's default), "example" for each.
      num_classes: of the label distributions.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    probability: float = 1.0
    per: str = "batch"
    num_classes: int = 0

    def __post_init__(self):
        if self.per not in ("batch", "example"):
            raise UserError(f'mixing.per={self.per!r} is unknown; use "batch" or "example"')
        if not (self.mixup >= 0.0 and self.cutmix >= 0.0 and 0.0 <= self.probability <= 1.0):
            raise UserError("mixing.mixup and mixing.cutmix are >= 0, mixing.probability is between 0 and 1")

    @property
    def active(self) -> bool:
        return self.mixup > 0.0 or self.cutmix > 0.0

    def weights(self, n: int, height: int, width: int, key: jax.Array) -> Float[Array, "n h w"]:
        """The weight maps of n draws; those of MixUp and of no mixing are constant."""
        keys = jax.random.split(key, 5)
        ones = jnp.ones((n, height, width))
        maps = ones
        if self.mixup:
            maps = ones * draw_beta(self.mixup, n, keys[0])[:, None, None]
        if self.cutmix:
            lam = draw_beta(self.cutmix, n, keys[1])
            boxes = cutmix_weights(lam, height, width, keys[2])
            share = self.switch if self.mixup else 1.0
            maps = jnp.where(jax.random.bernoulli(keys[3], share, (n, 1, 1)), boxes, maps)
        return jnp.where(jax.random.bernoulli(keys[4], self.probability, (n, 1, 1)), maps, ones)

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        image, label = batch["image"], batch["label"]
        if label.ndim > 2:
            raise UserError(
                "mixing needs one label (or distribution) per example; set config.mixing to zeros"
            )
        height, width = image.shape[-3:-1]
        n = 1 if self.per == "batch" else image.shape[0]
        w = self.weights(n, height, width, key)
        lam = w.mean((1, 2))[:, None]
        w = w.reshape(n, *(1,) * (image.ndim - 4), height, width, 1)
        target = label if label.ndim == 2 else jax.nn.one_hot(label, self.num_classes)
        mixed = w * image + (1.0 - w) * jnp.roll(image, 1, axis=0)
        soft = lam * target + (1.0 - lam) * jnp.roll(target, 1, axis=0)
        return batch | {"image": mixed.astype(image.dtype), "label": soft.astype(jnp.float32)}
