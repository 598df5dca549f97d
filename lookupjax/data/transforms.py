"""Image transforms: small frozen dataclasses, applied in order to one example's image.

Deterministic ones are called with the image, random ones with (image, numpy Generator). In a config they
are dicts of a "name" and the arguments: ({"name": "random_affine", "degrees": 10.0}, {"name": "normalize"}).
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lookupjax.errors import UserError, nearest

Image = np.ndarray  # (h, w, c), uint8 until Normalize, then float32


def decode_image(encoded: bytes, channels: int) -> Image:
    """Encoded bytes (PNG, JPEG, anything OpenCV reads) as uint8 (h, w, channels), RGB or grey.

    Raises:
      ValueError: when they are no image.
    """
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:  # an empty buffer
        image = None
    if image is None:
        raise ValueError("not an image that can be decoded")
    return image[:, :, None] if channels == 1 else image


def _with_channels(image: Image) -> Image:
    return image[:, :, None] if image.ndim == 2 else image


@dataclass(frozen=True)
class Resize:
    """To `size` = (height, width): area averaging when shrinking, bilinear when growing."""

    size: tuple[int, int]

    def __call__(self, image: Image) -> Image:
        height, width = self.size
        if image.shape[:2] == (height, width):
            return image
        shrinks = height * width < image.shape[0] * image.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return _with_channels(cv2.resize(image, (width, height), interpolation=how))


@dataclass(frozen=True)
class RandomFlip:
    """Left-right, with probability one half."""

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        return image[:, ::-1] if random.random() < 0.5 else image


@dataclass(frozen=True)
class RandomAffine:
    """Rotation by up to `degrees`, shift by up to `translate` of each side, scaling within `scale`.

    Uniform draws, bilinear sampling about the centre, black border.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        angle = random.uniform(-self.degrees, self.degrees)
        scale = random.uniform(*self.scale)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += random.uniform(-self.translate, self.translate, 2) * (width, height)
        return _with_channels(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR))


@dataclass(frozen=True)
class Normalize:
    """uint8 to float32: (x / 255 - mean) / std per channel; the defaults give [-1, 1]."""

    mean: tuple[float, ...] | float = 0.5
    std: tuple[float, ...] | float = 0.5

    def __call__(self, image: Image) -> Image:
        scaled = image.astype(np.float32) * np.float32(1 / 255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


TRANSFORMS = {
    "resize": Resize,
    "random_flip": RandomFlip,
    "random_affine": RandomAffine,
    "normalize": Normalize,
}
RANDOM = (RandomFlip, RandomAffine)


def build_transforms(specs: Iterable[dict]) -> list[Callable]:
    """The transforms of a config.

    Raises:
      UserError: for an unknown transform or argument, with the nearest one.
    """
    transforms = []
    for spec in specs:
        arguments = dict(spec)
        name = arguments.pop("name", "")
        if name not in TRANSFORMS:
            raise UserError(
                f"there is no transform {name!r}{nearest(name, TRANSFORMS)}; there are {list(TRANSFORMS)}"
            )
        known = [field.name for field in dataclasses.fields(TRANSFORMS[name])]
        for argument in arguments:
            if argument not in known:
                raise UserError(
                    f"{name} has no argument {argument!r}{nearest(argument, known)}; it has {known}"
                )
        try:
            transforms.append(TRANSFORMS[name](**arguments))
        except TypeError as error:
            raise UserError(f"transform {name}: {error}") from None
    return transforms


def apply(transforms: Iterable[Callable], image: Image, random: np.random.Generator | None = None) -> Image:
    """All transforms in order; the random ones draw from `random`."""
    for transform in transforms:
        image = transform(image, random) if isinstance(transform, RANDOM) else transform(image)
    return image


def read_image(path: str | Path, channels: int) -> Image:
    """A user's image file, decoded.

    Raises:
      UserError: naming the file, when it is missing, unreadable or no image.
    """
    try:
        return decode_image(Path(path).read_bytes(), channels)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
