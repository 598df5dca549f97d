"""Transforms: small frozen dataclasses, applied in order to one example.

In a config they are dicts of a "name" and the arguments:
({"name": "random_resized_crop", "size": (224, 224)}, {"name": "random_flip"}, {"name": "normalize"}).
`TRANSFORMS` lists ours; "package.module:Class" names one defined elsewhere. Class attributes say how one is
called:

    random = True   also gets a numpy Generator that depends on (seed, position) alone
    whole = True    gets and returns the whole example (a dict), not its "image": tokenising a text,
                    moving boxes with a crop, choosing keys
    clip = True     gets all frames of a clip (frames, h, w, c); others see one after the other, with the
                    same random draws for each
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import simplejpeg

from lookupjax.data import colour
from lookupjax.data.clips import (
    EvenClips,
    EvenSegments,
    RandomClip,
    RandomSegments,
    ShuffleFrames,
    SpatialCrops,
    SplitFrames,
)
from lookupjax.data.rand_augment import RandAugment
from lookupjax.data.resize import (
    Image,
    check_interpolation,
    resize_image,
    resize_window,
    with_channels,
)
from lookupjax.data.tokenizer import CaptionTokens
from lookupjax.errors import UserError, nearest


def decode_image(encoded: bytes, channels: int) -> Image:
    """Encoded bytes (PNG, JPEG, anything OpenCV reads) as uint8 (h, w, channels), RGB or grey.

    A camera's orientation tag is not followed, as in the pipelines that ImageNet's accuracies come from.

    Raises:
      ValueError: when they are no image.
    """
    if encoded[:2] == b"\xff\xd8" and channels == 3:  # a JPEG: OpenCV's pixels, some per cent faster
        try:
            return simplejpeg.decode_jpeg(encoded, "RGB")
        except ValueError:
            pass  # OpenCV reads damaged files as far as they go
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # an empty buffer
        image = None
    if image is None:
        raise ValueError("not an image that can be decoded")
    return with_channels(image)


@dataclass(frozen=True)
class Resize:
    """To `size` = (height, width), whatever the aspect ratio; see `resize_image` for the interpolations."""

    size: tuple[int, int]
    interpolation: str = "auto"

    def __post_init__(self):
        check_interpolation(self.interpolation)

    def __call__(self, image: Image) -> Image:
        return resize_image(image, self.size, self.interpolation)


@dataclass(frozen=True)
class ResizeShortSide:
    """The shorter side to `size` pixels, the aspect ratio kept (the longer side is rounded down)."""

    size: int
    interpolation: str = "auto"

    def __post_init__(self):
        check_interpolation(self.interpolation)

    def __call__(self, image: Image) -> Image:
        return resize_image(image, short_side_size(image.shape[:2], self.size), self.interpolation)


def short_side_size(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) of an image whose shorter side becomes `size`."""
    height, width = shape
    return (size, size * width // height) if height <= width else (size * height // width, size)


@dataclass(frozen=True)
class CentreCrop:
    """The usual evaluation view: the shorter side to floor(max(size) / crop_pct), then the centre.

    Args:
      size: (height, width) of the result.
      crop_pct: share of the resized shorter side that is kept (0.875: resize 256, crop 224); None crops
        without resizing, images smaller than `size` are then padded with zeros.
    """

    size: tuple[int, int]
    crop_pct: float | int | None = 0.875
    interpolation: str = "auto"

    def __post_init__(self):
        check_interpolation(self.interpolation)

    def __call__(self, image: Image) -> Image:
        height, width = self.size
        whole = image.shape[:2]
        if self.crop_pct is not None:
            whole = short_side_size(whole, math.floor(max(self.size) / self.crop_pct + 1e-6))
        top, left = round((whole[0] - height) / 2), round((whole[1] - width) / 2)
        if self.crop_pct is not None and top >= 0 and left >= 0:
            return resize_window(image, whole, (top, left), self.size, self.interpolation)
        image = resize_image(image, whole, self.interpolation)
        above, before = max(-top, 0), max(-left, 0)
        if above or before:
            below, after = height - whole[0] - above, width - whole[1] - before
            pads = (above, max(below, 0), before, max(after, 0))
            image = with_channels(cv2.copyMakeBorder(image, *pads, cv2.BORDER_CONSTANT, value=0))
        top, left = max(top, 0), max(left, 0)
        return image[top : top + height, left : left + width]


@dataclass(frozen=True)
class RandomResizedCrop:
    """Inception's crop (arXiv 1409.4842): a random share of the area at a random aspect ratio, resized.

    Ten tries of area share uniform in `area` and width / height log-uniform in `ratio`, at a uniform
    place; when none fits, the largest centred crop with a ratio in range.
    """

    size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "auto"

    random: ClassVar[bool] = True

    def __post_init__(self):
        check_interpolation(self.interpolation)

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        top, left, height, width = self.box(image.shape[0], image.shape[1], random)
        return resize_image(image[top : top + height, left : left + width], self.size, self.interpolation)

    def box(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop in an image of that size."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            target = height * width * random.uniform(*self.area)
            ratio = math.exp(random.uniform(low, high))
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class RandomCrop:
    """A window of `size` at a uniform place, without resizing; `padding` zeros are put around first."""

    size: tuple[int, int]
    padding: int = 0

    random: ClassVar[bool] = True

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        image = np.pad(image, ((self.padding,) * 2, (self.padding,) * 2, (0, 0)))
        free = [whole - side for whole, side in zip(image.shape, self.size)]
        if min(free) < 0:
            raise UserError(
                f"random_crop: an image of {image.shape[:2]} pixels has no window of {self.size}; "
                "put a resize before it"
            )
        top, left = (int(random.integers(n + 1)) for n in free)
        return image[top : top + self.size[0], left : left + self.size[1]]


@dataclass(frozen=True)
class RandomScaledCrop:
    """A window of `size` at a uniform place of the image at a random scale, its aspect ratio kept.

    The shorter side becomes max(size) / crop_pct pixels times a uniform factor in `scale` (scenic's videos).
    """

    size: tuple[int, int]
    crop_pct: float | int = 0.875
    scale: tuple[float, float] = (0.9, 1.33)
    interpolation: str = "auto"

    random: ClassVar[bool] = True

    def __post_init__(self):
        check_interpolation(self.interpolation)
        if self.scale[0] < self.crop_pct:
            raise UserError(
                f"random_scaled_crop: at scale {self.scale[0]} the shorter side is less than the crop; "
                f"raise it to crop_pct={self.crop_pct} or more"
            )

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        short = max(self.size) / self.crop_pct * random.uniform(*self.scale)
        step = min(image.shape[:2]) / short  # pixels here per pixel of the result
        sides = [min(round(n * step), whole) for n, whole in zip(self.size, image.shape)]
        top, left = (int(random.integers(whole - n + 1)) for n, whole in zip(sides, image.shape))
        window = image[top : top + sides[0], left : left + sides[1]]
        return resize_image(window, self.size, self.interpolation)


@dataclass(frozen=True)
class RandomFlip:
    """Left-right, with probability one half."""

    random: ClassVar[bool] = True

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        return with_channels(cv2.flip(image, 1)) if random.random() < 0.5 else image


@dataclass(frozen=True)
class RandomAffine:
    """Rotation by up to `degrees`, shift by up to `translate` of each side, scaling within `scale`.

    Uniform draws, bilinear sampling about the centre, black border.
    """

    degrees: float | int = 0.0
    translate: float | int = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    random: ClassVar[bool] = True

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        angle = random.uniform(-self.degrees, self.degrees)
        scale = random.uniform(*self.scale)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += random.uniform(-self.translate, self.translate, 2) * (width, height)
        return with_channels(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR))


@dataclass(frozen=True)
class RandomQuarterTurn:
    """Turns by 0, 90, 180 or 270 degrees, equally likely (Berrios & Deza 2022).

    The canvas stays: a quarter turn of an image that is not square cuts two sides and leaves black bars at
    the others, as torchvision's rotation does. With `flip` half of the images are mirrored before: one of
    the eight symmetries of the square.
    """

    flip: bool = False

    random: ClassVar[bool] = True

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        turns = int(random.integers(4))
        if self.flip and random.random() < 0.5:
            image = image[:, ::-1]
        if turns % 2 == 0 or height == width:
            return np.ascontiguousarray(np.rot90(image, turns))
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 90 * turns, 1.0)
        image = np.ascontiguousarray(image)
        return with_channels(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_NEAREST))


@dataclass(frozen=True)
class RandomGrey:
    """Takes away all colour, with a probability; the channels stay."""

    probability: float | int = 0.25

    random: ClassVar[bool] = True

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        return colour.colour(image, 0.0) if random.random() < self.probability else image


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation factors uniform in [1 - s, 1 + s], in random order.

    `hue` turns by up to that share of the circle (at most 0.5). With `probability` it happens at all.
    """

    brightness: float | int = 0.4
    contrast: float | int = 0.4
    saturation: float | int = 0.4
    hue: float | int = 0.0
    probability: float | int = 1.0

    random: ClassVar[bool] = True

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        if self.probability < 1.0 and random.random() >= self.probability:
            return image
        steps = (
            (colour.brightness, self.brightness),
            (colour.contrast, self.contrast),
            (colour.colour, self.saturation),
            (colour.hue, self.hue),
        )
        for index in random.permutation(len(steps)):
            function, strength = steps[index]
            centre = 0.0 if function is colour.hue else 1.0
            if strength:
                image = function(
                    image, random.uniform(max(centre - strength, centre - 1.0), centre + strength)
                )
        return image


@dataclass(frozen=True)
class RandomErasing:
    """Replaces a random rectangle (arXiv 1708.04896); put it after normalisation.

    Area share uniform in `area`, height / width log-uniform in `ratio`, ten tries. `fill`: "pixel" draws
    every value from N(0, 1) (timm, DeiT), "colour" one per channel, "zero" is the mean colour.
    """

    probability: float | int = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: str = "pixel"

    random: ClassVar[bool] = True

    def __post_init__(self):
        if self.fill not in ("pixel", "colour", "zero"):
            raise UserError(f'random_erasing: fill={self.fill!r} is unknown; use "pixel", "colour" or "zero"')

    def __call__(self, image: Image, random: np.random.Generator) -> Image:
        if image.dtype == np.uint8:
            raise UserError("random_erasing fills in normalised values; put it after normalize")
        if random.random() >= self.probability:
            return image
        height, width, channels = image.shape
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            target = height * width * random.uniform(*self.area)
            ratio = math.exp(random.uniform(low, high))
            h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if h < height and w < width:
                top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
                image = image.copy()
                shape = {"pixel": (h, w, channels), "colour": (1, 1, channels), "zero": (1, 1, 1)}[self.fill]
                noise = random.standard_normal(shape, np.float32)
                image[top : top + h, left : left + w] = 0.0 if self.fill == "zero" else noise
                return image
        return image


@dataclass(frozen=True)
class Normalize:
    """uint8 to float32: (x / 255 - mean) / std per channel; the defaults give [-1, 1]."""

    mean: tuple[float, ...] | float = 0.5
    std: tuple[float, ...] | float = 0.5

    def __call__(self, image: Image) -> Image:
        height, width, channels = image.shape
        rows = image.reshape(height, width * channels).astype(np.float32)  # long rows: numpy's fast path
        rows *= np.float32(1 / 255)
        for operate, values in ((np.subtract, self.mean), (np.divide, self.std)):
            per_channel = np.broadcast_to(np.asarray(values, np.float32), (channels,))
            operate(rows, np.tile(per_channel, width), out=rows)
        return rows.reshape(image.shape)


TRANSFORMS = {
    "resize": Resize,
    "resize_short_side": ResizeShortSide,
    "centre_crop": CentreCrop,
    "random_resized_crop": RandomResizedCrop,
    "random_crop": RandomCrop,
    "random_flip": RandomFlip,
    "random_affine": RandomAffine,
    "rand_augment": RandAugment,
    "random_quarter_turn": RandomQuarterTurn,
    "random_grey": RandomGrey,
    "colour_jitter": ColourJitter,
    "random_erasing": RandomErasing,
    "captions": CaptionTokens,
    "normalize": Normalize,
    "random_scaled_crop": RandomScaledCrop,
    "random_clip": RandomClip,
    "even_clips": EvenClips,
    "random_segments": RandomSegments,
    "even_segments": EvenSegments,
    "split_frames": SplitFrames,
    "shuffle_frames": ShuffleFrames,
    "spatial_crops": SpatialCrops,
}


def _transform_class(name: str) -> type:
    if name in TRANSFORMS:
        return TRANSFORMS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"there is no transform {name!r}{nearest(name, TRANSFORMS)}; there are {list(TRANSFORMS)} "
            'and any "package.module:Class"'
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"transform {name!r}: {error}") from None


def build_transforms(specs: Iterable[dict]) -> list[Callable]:
    """The transforms of a config.

    Raises:
      UserError: for an unknown transform or argument, with the nearest one.
    """
    transforms = []
    for spec in specs:
        arguments = dict(spec)
        name = arguments.pop("name", "")
        kind = _transform_class(name)
        known = [field.name for field in dataclasses.fields(kind)]
        for argument in arguments:
            if argument not in known:
                raise UserError(
                    f"{name} has no argument {argument!r}{nearest(argument, known)}; it has {known}"
                )
        try:
            transforms.append(kind(**arguments))
        except TypeError as error:
            raise UserError(f"transform {name}: {error}") from None
    return transforms


def output_size(specs: Iterable[dict]) -> tuple[int, ...]:
    """(height, width) of every image after a config's transforms; () where that depends on the image."""
    sizes = [spec["size"] for spec in specs if "size" in spec]
    return tuple(sizes[-1]) if sizes and not isinstance(sizes[-1], int) else ()


def split_normalize(transforms: list[Callable]) -> tuple[list[Callable], Normalize | None]:
    """(the others, the Normalize that stands last or None).

    Training does that one on the device: batches travel as uint8, a quarter of the bytes, and a core has
    one pass less over every pixel.
    """
    if transforms and isinstance(transforms[-1], Normalize):
        return transforms[:-1], transforms[-1]
    return transforms, None


def apply(transforms: Iterable[Callable], image: Image, random: np.random.Generator | None = None) -> Image:
    """An image alone through the transforms of images, in order; those of whole examples are left out."""
    images_only = [t for t in transforms if not getattr(t, "whole", False)]
    return apply_example(images_only, {"image": image}, random)["image"]


def apply_example(
    transforms: Iterable[Callable], example: dict[str, Any], random: np.random.Generator | None = None
) -> dict[str, Any]:
    """All transforms in order; the random ones draw from `random`."""
    for transform in transforms:
        draws = (random,) if getattr(transform, "random", False) else ()
        if getattr(transform, "whole", False):
            example = transform(example, *draws)
        elif example["image"].ndim > 3 and not getattr(transform, "clip", False):
            example = example | {"image": each_frame(transform, example["image"], *draws)}
        else:
            example = example | {"image": transform(example["image"], *draws)}
    return example


def each_frame(transform: Callable, clip: np.ndarray, *draws: np.random.Generator) -> np.ndarray:
    """A transform of images on every frame of a clip (..., h, w, c), with the same draws for each."""
    states = [random.bit_generator.state for random in draws]
    frames = []
    for frame in clip.reshape(-1, *clip.shape[-3:]):
        for random, state in zip(draws, states):
            random.bit_generator.state = state
        frames.append(transform(frame, *draws))
    return np.stack(frames).reshape(*clip.shape[:-3], *frames[0].shape)


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


def write_image(image: Image, path: str | Path) -> None:
    """A uint8 RGB or grey image as a file of the kind its suffix says; its directory is made.

    Raises:
      UserError: when it cannot be written.
    """
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[-1] == 3 else image
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(cv2.imencode(Path(path).suffix, pixels)[1].tobytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
