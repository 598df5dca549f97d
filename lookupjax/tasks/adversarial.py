"""Adversarial noise on pixels, FGSM and PGD under an L-infinity bound, and training any classifier on it.

Noise is added to pixels in [0, 1], before normalisation; eps and step sizes are in the same units. One step
is "fast" adversarial training's (arXiv 2001.03994; with CrossViT in Berrios & Deza 2022, the Brain-Score
recipe), several are PGD (arXiv 1706.06083).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.rngs import Keys
from lookupjax.tasks.base import Batch, Figures
from lookupjax.tasks.classification import Classification

PerChannel = tuple[float, ...] | float
LossOfImages = Callable[[Float[Array, "b h w c"]], Float[Array, ""]]


def clip_pixels(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Clips to [0, 1]. A pixel outside has gradient 0, one inside or exactly on the bound 1.

    (`jnp.clip` halves the gradient on the bound.)
    """
    inside = (images >= 0.0) & (images <= 1.0)
    return jnp.where(inside, images, jax.lax.stop_gradient(jnp.clip(images, 0.0, 1.0)))


def initial_noise(
    images: Float[Array, "b h w c"], key: jax.Array, eps: float | Float[Array, ""]
) -> Float[Array, "b h w c"]:
    """Uniform in [-eps, eps]."""
    return jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0) * eps


def ascend(
    loss: LossOfImages,
    images: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    *,
    eps: float | Float[Array, ""],
    step: float | Float[Array, ""],
) -> tuple[Float[Array, "b h w c"], Float[Array, ""], Float[Array, "b h w c"]]:
    """One signed gradient step: noise <- clip(noise + step sign(g), -eps, eps), g = d loss / d noise.

    Returns (new noise, loss before the step, g). sign(0) = 0: a saturated pixel keeps its noise.
    """
    value, gradient = jax.value_and_grad(lambda noise: loss(clip_pixels(images + noise)))(noise)
    return jnp.clip(noise + step * jnp.sign(gradient), -eps, eps), value, gradient


def attack(
    loss: LossOfImages,
    images: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    *,
    eps: float | Float[Array, ""],
    step: float | Float[Array, ""],
    steps: int,
) -> Float[Array, "b h w c"]:
    """The images after `steps` ascents from `noise` (1: FGSM, more: PGD); no gradient passes through.

    Raises:
      UserError: when `steps` is not positive.
    """
    if steps < 1:
        raise UserError(f"an attack needs at least one step, not {steps}")

    def body(noise: Float[Array, "b h w c"], _: None) -> tuple[Float[Array, "b h w c"], None]:
        return ascend(loss, images, noise, eps=eps, step=step)[0], None

    noise, _ = jax.lax.scan(body, noise, None, length=steps)
    return jax.lax.stop_gradient(clip_pixels(images + noise))


@dataclass(frozen=True)
class Normalisation:
    """How a model's inputs follow from pixels: (pixels - mean) / std, the arguments of transform "normalize".

    Noise comes back as a change of the input it was made for, so that no noise changes nothing at all.
    """

    mean: PerChannel = 0.5
    std: PerChannel = 0.5

    def constants(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, shaped to meet images of `ndim` axes."""
        values = (np.atleast_1d(np.asarray(v, np.float32)) for v in (self.mean, self.std))
        mean, std = (v.reshape((1,) * (ndim - 1) + v.shape) for v in values)
        return mean, std

    def pixels(self, inputs: Float[Array, "b *size c"]) -> Float[Array, "b *size c"]:
        """The pixels in [0, 1] behind a model's inputs."""
        mean, std = self.constants(inputs.ndim)
        return jnp.clip(inputs * std + mean, 0.0, 1.0)

    def changed(
        self,
        inputs: Float[Array, "b *size c"],
        before: Float[Array, "b *size c"],
        after: Float[Array, "b *size c"],
    ) -> Float[Array, "b *size c"]:
        """The inputs when their pixels change from `before` to `after`."""
        return inputs + (after - before) / self.constants(inputs.ndim)[1]


@dataclass(frozen=True)
class AdversarialClassification(Classification):
    """Classification of images attacked afresh in every step (the Brain-Score recipe's values).

    Both passes run in training mode, with the same dropout; BatchNorm's running statistics follow the
    attacked images only. Evaluation is that of clean images; robust accuracy is an evaluator.

    Args:
      eps: bound of the noise; 0 trains on clean images.
      step, steps: size and number of the ascents.
      random_start: whether the noise starts uniform in [-eps, eps], or at 0.
      mean, std: of the "normalize" transform that made the model's inputs.
    """

    eps: float = 2 / 255
    step: float = 2.5 / 255
    steps: int = 1
    random_start: bool = True
    mean: PerChannel = 0.5
    std: PerChannel = 0.5

    def attacked(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> Float[Array, "b h w c"]:
        """The batch's images, attacked."""
        inputs, normalisation = batch["image"], Normalisation(self.mean, self.std)
        pixels = normalisation.pixels(inputs)
        start, passes = rngs.noise(), rngs.passes()
        graphdef, state = nnx.split(model)

        def loss(attacked: Float[Array, "b h w c"]) -> Float[Array, ""]:
            copy = nnx.merge(graphdef, state, copy=True)  # whose statistics are thrown away
            out = copy(normalisation.changed(inputs, pixels, attacked), rngs=Keys(passes), **call)
            return self.loss(out, batch)[0]

        noise = initial_noise(pixels, start, self.eps) if self.random_start else jnp.zeros_like(pixels)
        worst = attack(loss, pixels, noise, eps=self.eps, step=self.step, steps=self.steps)
        return normalisation.changed(inputs, pixels, worst)

    def train_loss(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> tuple[Float[Array, ""], Figures]:
        if self.eps:
            attacked = self.attacked(model, batch, rngs=rngs, **call)
            batch = dict(batch) | {"image": jax.lax.stop_gradient(attacked)}
        return super().train_loss(model, batch, rngs=rngs, **call)


TASK = AdversarialClassification
