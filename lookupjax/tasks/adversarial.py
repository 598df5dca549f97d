"""Adversarial noise on pixels: the arithmetic of FGSM and PGD under an L-infinity bound.

Images are in [0, 1] here, before normalisation; eps and step sizes are in the same units. One step is
"fast" adversarial training's (arXiv 2001.03994; with CrossViT in Berrios & Deza 2022, the Brain-Score
recipe), several are PGD (arXiv 1706.06083).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lookupjax.errors import UserError

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
