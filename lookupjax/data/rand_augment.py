"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): n operations drawn at random, one strength m.

Strength m on a scale where 10 is AutoAugment's maximum; x = m / 10 below. "signed" arguments get a
random sign. Sizes are shares of the image's side (TF's code: 100 and 40 pixels, of 224).

    rotate        30 x degrees, signed      shear_x, shear_y          0.3 x, signed
    posterize     keeps int(4 x) bits       translate_x, translate_y  0.45 x of the side, signed
    solarize      from int(256 x) on        colour, contrast, brightness, sharpness  factor 0.1 + 1.8 x
    solarize_add  int(110 x)                cutout                    a square of 2 * 0.18 x of the side

With these maps (the paper's and TF's code) posterize, solarize and the factors near 1 weaken as m grows;
`increasing` is timm's "inc1": 4 - int(4 x) bits, from 256 - int(256 x) on, factor max(0.1, 1 +- 0.9 x).
"""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from lookupjax.data import colour
from lookupjax.data.resize import Image
from lookupjax.errors import UserError, nearest

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
FACTORS = ("colour", "contrast", "brightness", "sharpness")
COMMON = ("autocontrast", "equalize", "posterize", "solarize", *GEOMETRIC, *FACTORS)
OPERATIONS = {
    "paper": ("identity", *COMMON),  # the 14 of section 3
    "tf": (*COMMON, "invert", "solarize_add", "cutout"),  # the 16 of the authors' code; scenic, big_vision
    "timm": (*COMMON, "invert", "solarize_add"),  # 15
}
TRANSLATE, CUTOUT = 0.45, 0.18
INTERPOLATIONS = {
    "nearest": (cv2.INTER_NEAREST,),
    "linear": (cv2.INTER_LINEAR,),
    "cubic": (cv2.INTER_CUBIC,),
    "random": (cv2.INTER_LINEAR, cv2.INTER_CUBIC),  # timm
}


def argument(name: str, x: float, sign: int, increasing: bool) -> float:
    """What operation `name` gets at strength 10 x; see the table above."""
    if name == "rotate":
        return sign * 30.0 * x
    if name in ("shear_x", "shear_y"):
        return sign * 0.3 * x
    if name in ("translate_x", "translate_y"):
        return sign * TRANSLATE * x
    if name in FACTORS:
        return max(0.1, 1.0 + sign * 0.9 * x) if increasing else 0.1 + 1.8 * x
    if name == "posterize":
        return float(max(0, 4 - int(4 * x)) if increasing else int(4 * x))
    if name == "solarize":
        return float(max(0, 256 - int(256 * x)) if increasing else int(256 * x))
    if name == "solarize_add":
        return float(int(110 * x))
    return CUTOUT * x if name == "cutout" else 0.0


def geometric(image: Image, name: str, value: float, fill: tuple[int, ...], interpolation: int) -> Image:
    """Rotation, shear or translation by `value` (see `argument`)."""
    height, width = image.shape[:2]
    inverse = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    if name == "rotate":
        inverse = colour.rotation(value, height, width)
    elif name == "shear_x":
        inverse[0, 1] = value
    elif name == "shear_y":
        inverse[1, 0] = value
    elif name == "translate_x":
        inverse[0, 2] = value * width
    else:
        inverse[1, 2] = value * height
    return colour.warp(image, inverse, fill, interpolation)


def cutout(image: Image, share: float, fill: tuple[int, ...], random: np.random.Generator) -> Image:
    """Fills a square of side 2 share x side about a uniformly drawn pixel."""
    height, width = image.shape[:2]
    y, x = int(random.integers(height)), int(random.integers(width))
    half_y, half_x = int(share * height), int(share * width)
    image = image.copy()
    channels = image.shape[2]
    image[max(y - half_y, 0) : y + half_y, max(x - half_x, 0) : x + half_x] = fill[:channels]
    return image


def operate(
    image: Image,
    name: str,
    value: float,
    fill: tuple[int, ...],
    interpolation: int,
    random: np.random.Generator,
) -> Image:
    """One operation at the argument that `argument` gives."""
    if name == "identity":
        return image
    if name in GEOMETRIC:
        return geometric(image, name, value, fill, interpolation)
    if name == "cutout":
        return cutout(image, value, fill, random)
    function = getattr(colour, name)
    if name in ("autocontrast", "equalize", "invert"):
        return function(image)
    return function(image, value if name in FACTORS else int(value))


@dataclass(frozen=True)
class RandAugment:
    """n operations, drawn with replacement, each at strength m.

    timm's "rand-m9-mstd0.5-inc1" is RandAugment(2, 9.0, operations="timm", std=0.5, increasing=True,
    probability=0.5, interpolation="random").

    Args:
      operations: a set of OPERATIONS.
      std: standard deviation of a normal draw of the strength per operation, clipped to [0, 10] (timm);
        0 for m itself.
      increasing: see the module.
      probability: of applying each drawn operation.
      fill: colour of uncovered pixels, per channel.
      interpolation: of the geometric operations; "random" draws linear or cubic each time.
    """

    n: int = 2
    m: float | int = 9.0
    operations: str = "paper"
    std: float | int = 0.0
    increasing: bool = False
    probability: float | int = 1.0
    fill: tuple[int, ...] = (128, 128, 128)
    interpolation: str = "nearest"

    random: ClassVar[bool] = True

    def __post_init__(self):
        for value, known in ((self.operations, OPERATIONS), (self.interpolation, INTERPOLATIONS)):
            if value not in known:
                raise UserError(
                    f"rand_augment: {value!r} is unknown{nearest(value, known)}; use one of {list(known)}"
                )

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        names, flags = OPERATIONS[self.operations], INTERPOLATIONS[self.interpolation]
        for _ in range(self.n):
            name = names[int(random.integers(len(names)))]
            if self.probability < 1.0 and random.random() >= self.probability:
                continue
            level = float(np.clip(random.normal(self.m, self.std), 0.0, 10.0)) if self.std else self.m
            sign = 1 if random.random() < 0.5 else -1
            flag = flags[int(random.integers(len(flags)))]
            value = argument(name, level / 10.0, sign, self.increasing)
            image = operate(image, name, value, self.fill, flag, random)
        return image
