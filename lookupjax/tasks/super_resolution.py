"""Super-resolution: enlarge an image's shrunk copy and compare with the image.

The copy is made here, from the batch's images (values in [0, 1]: transform `normalize` with mean 0 and
std 1), by antialiased bicubic interpolation rounded to 8 bits, as the low-resolution files of DIV2K and the
benchmarks were. Figures follow BasicSR: the output rounded to 8 bits, a border cut off, only luma (Y of
BT.601).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from lookupjax.errors import UserError
from lookupjax.layers.position import resize_grid
from lookupjax.tasks.base import Batch, Figures, Outputs, Task

LUMA = (65.481, 128.553, 24.966)  # of 255, on top of 16
WINDOW, SIGMA = 11, 1.5  # of SSIM (Wang et al. 2004)


def eight_bits(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Clipped to [0, 1] and rounded to multiples of 1/255."""
    return jnp.round(jnp.clip(x, 0.0, 1.0) * 255.0) / 255.0


def whole(images: Float[Array, "b h w c"], scale: int) -> Float[Array, "b h2 w2 c"]:
    """The images without the last rows and columns that do not make a whole low-resolution pixel."""
    return images[:, : images.shape[1] // scale * scale, : images.shape[2] // scale * scale]


def shrink(images: Float[Array, "b h w c"], scale: int) -> Float[Array, "b h2 w2 c"]:
    """The low-resolution copies, 8 bits deep."""
    grid = (images.shape[1] // scale, images.shape[2] // scale)
    return eight_bits(resize_grid(images, grid, method="cubic"))


def bicubic_enlarged(low: Float[Array, "b h w c"], scale: int) -> Float[Array, "b h2 w2 c"]:
    """What everybody compares with."""
    return resize_grid(low, (low.shape[1] * scale, low.shape[2] * scale), method="cubic")


def luma(images: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """Y of RGB images in [0, 1], from 16 to 235; grey images times 255."""
    if images.shape[-1] == 1:
        return images[..., 0] * 255.0
    return jnp.einsum("bhwc,c->bhw", images, jnp.asarray(LUMA), precision="highest") + 16.0


def psnr(a: Float[Array, "b h w"], b: Float[Array, "b h w"]) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in decibel, values to 255."""
    return 10.0 * jnp.log10(255.0**2 / jnp.square(a - b).mean((1, 2)))


def ssim(a: Float[Array, "b h w"], b: Float[Array, "b h w"]) -> Float[Array, "b"]:
    """Structural similarity: Gaussian windows of 11 pixels that lie inside, values to 255.

    Raises:
      UserError: for images smaller than a window.
    """
    if min(a.shape[1:]) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} pixels a side inside the border, not {a.shape}"
        )
    distance = np.arange(WINDOW) - WINDOW // 2
    bell = np.exp(-np.square(distance) / (2 * SIGMA**2))
    weight = jnp.asarray(bell / bell.sum(), jnp.float32)

    def blur(x: Float[Array, "n h w"]) -> Float[Array, "n h2 w2"]:
        for kernel in (weight[:, None], weight[None]):
            x = lax.conv_general_dilated(x[:, None], kernel[None, None], (1, 1), "VALID", precision="highest")
            x = x[:, 0]
        return x

    a, b = a - 128.0, b - 128.0  # the variances lose fewer digits
    maps = blur(jnp.concatenate([a, b, a * a, b * b, a * b]))
    mean_a, mean_b, square_a, square_b, product = jnp.split(maps, 5)
    var_a, var_b = square_a - mean_a * mean_a, square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + 128.0, mean_b + 128.0
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) / (jnp.square(mean_a) + jnp.square(mean_b) + c1)
    return (likeness * (2 * covariance + c2) / (var_a + var_b + c2)).mean((1, 2))


@dataclass(frozen=True)
class SuperResolution(Task):
    """Mean absolute error in training; PSNR and SSIM, ours and bicubic interpolation's, in evaluation.

    Args:
      scale: enlargement; default the model's.
      border: pixels left out on each side of the figures; -1 takes the scale.
    """

    scale: int = 4
    border: int = -1

    @classmethod
    def for_model(cls, model: nnx.Module, **options: Any) -> "SuperResolution":
        """Takes the scale from the model.

        Raises:
          UserError: for a model that does not enlarge images.
        """
        if "image" not in getattr(model, "loss_heads", ()):
            raise UserError(
                f"the task super_resolution needs a model that enlarges, not {type(model).__name__}"
            )
        return cls(**({"scale": model.scale} | options))

    def train_loss(
        self, model: nnx.Module, batch: Batch, *, rngs: nnx.Rngs, **call: Any
    ) -> tuple[Float[Array, ""], Figures]:
        low = shrink(whole(batch["image"], self.scale), self.scale)
        return self.loss(model(low, rngs=rngs, **call), batch)

    def predict(self, model: nnx.Module, batch: Batch, **call: Any) -> Outputs:
        """Besides the model's outputs "low", what it has enlarged."""
        low = shrink(whole(batch["image"], self.scale), self.scale)
        return model(low, **call) | {"low": low}

    def loss(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], Figures]:
        error = jnp.abs(outputs["image"] - whole(batch["image"], self.scale)).mean()
        return error, {}

    def evaluate(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, "b"]]:
        """psnr, ssim of the model; bicubic_psnr, bicubic_ssim of bicubic interpolation."""
        target = self.measured(whole(batch["image"], self.scale))
        figures = {}
        enlarged = {"": outputs["image"], "bicubic_": bicubic_enlarged(outputs["low"], self.scale)}
        for name, image in enlarged.items():
            ours = self.measured(image)
            figures |= {f"{name}psnr": psnr(ours, target), f"{name}ssim": ssim(ours, target)}
        return figures

    def measured(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2"]:
        """The luma of the 8-bit images inside the border."""
        border = self.scale if self.border < 0 else self.border
        inside = slice(border, -border or None)
        return luma(eight_bits(images))[:, inside, inside]


TASK = SuperResolution
