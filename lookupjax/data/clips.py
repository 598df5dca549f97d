"""Transforms of videos: picking frames, views in space.

A record with a video has its bytes under "video". The first transform of a pipeline picks frames and decodes
only what it needs for them; "image" then holds a clip (frames, height, width, channels). Every transform of
images works on clips: it sees each frame with the same random draws. A dataset may also hold the frames
already, as one array under "image".

    random_clip      `frames` frames at a stride, from a random start                       training
    even_clips       the same from evenly spaced starts: (clips, frames, h, w, c), or one   evaluation
    random_segments  one random frame of each of `frames` equal parts (TSN, arXiv 1608.00859)
    even_segments    a fixed one of each part
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lookupjax.data.resize import Image, resize_image
from lookupjax.data.video import Video
from lookupjax.errors import UserError

Clip = np.ndarray  # (..., frames, h, w, c)


def read_frames(example: dict[str, Any], pick: Any) -> dict[str, Any]:
    """The example with "image" = frames number pick(n) of its n, decoded from "video" where there is one.

    `pick` returns an integer array; its axes become those of the clip.
    """
    if "video" not in example:
        return example | {"image": example["image"][pick(len(example["image"]))]}
    with Video(example["video"]) as video:
        numbers = pick(len(video))
        frames = video.read(numbers.ravel().tolist())
    shape = next(iter(frames.values())).shape
    clip = np.empty((*numbers.shape, *shape), np.uint8)
    for place, number in np.ndenumerate(numbers):
        clip[place] = frames[int(number)]
    return {k: v for k, v in example.items() if k != "video"} | {"image": clip}


def strided(start: int, frames: int, stride: int, n: int) -> np.ndarray:
    """`frames` numbers from `start` on; a video that is too short begins again (as scenic repeats it)."""
    return (start + stride * np.arange(frames)) % n


def last_start(frames: int, stride: int, n: int) -> int:
    return max(n - (frames - 1) * stride - 1, 0)


@dataclass(frozen=True)
class RandomClip:
    """`frames` frames from a uniform start.

    Args:
      stride: between frames, or (least, most) to draw it too.
    """

    frames: int
    stride: int | tuple[int, int] = 1

    random: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self):
        check_positive("random_clip", frames=self.frames, stride=int(np.min(self.stride)))

    def __call__(self, example: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        low, high = (self.stride, self.stride) if isinstance(self.stride, int) else self.stride
        stride = int(random.integers(low, high + 1))

        def pick(n: int) -> np.ndarray:
            start = int(random.integers(last_start(self.frames, stride, n) + 1))
            return strided(start, self.frames, stride, n)

        return read_frames(example, pick)


@dataclass(frozen=True)
class EvenClips:
    """`clips` clips of `frames` frames: the first begins with the video, the last ends with it.

    A single one is the middle. Of more than one the result has an axis before the frames.
    """

    frames: int
    stride: int = 1
    clips: int = 1

    whole: ClassVar[bool] = True

    def __post_init__(self):
        check_positive("even_clips", frames=self.frames, stride=self.stride, clips=self.clips)

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        def pick(n: int) -> np.ndarray:
            last = last_start(self.frames, self.stride, n)
            starts = np.linspace(0, last, self.clips).round().astype(int) if self.clips > 1 else [last // 2]
            numbers = np.stack([strided(int(s), self.frames, self.stride, n) for s in starts])
            return numbers if self.clips > 1 else numbers[0]

        return read_frames(example, pick)


@dataclass(frozen=True)
class RandomSegments:
    """A uniform frame of each of `frames` equal parts of the video, whatever its length."""

    frames: int

    random: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self):
        check_positive("random_segments", frames=self.frames)

    def __call__(self, example: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        places = (np.arange(self.frames) + random.random(self.frames)) / self.frames
        return read_frames(example, lambda n: np.minimum((places * n).astype(int), n - 1))


@dataclass(frozen=True)
class EvenSegments:
    """The middle frame of each of `frames` equal parts; several `clips` take evenly spaced ones of each."""

    frames: int
    clips: int = 1

    whole: ClassVar[bool] = True

    def __post_init__(self):
        check_positive("even_segments", frames=self.frames, clips=self.clips)

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        within = (np.arange(self.clips)[:, None] + 0.5) / self.clips
        places = (np.arange(self.frames)[None] + within) / self.frames
        places = places if self.clips > 1 else places[0]
        return read_frames(example, lambda n: np.minimum((places * n).astype(int), n - 1))


def check_positive(name: str, **values: int) -> None:
    for argument, value in values.items():
        if value < 1:
            raise UserError(f"{name}: {argument}={value} must be at least 1")


@dataclass(frozen=True)
class SplitFrames:
    """An image of `frames` pictures, one below the other, as a clip: how `moving_digits` is stored.

    Encoded videos pass as they are, so that a small config of one runs on the other.
    """

    frames: int

    whole: ClassVar[bool] = True

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        if "video" in example:
            return example
        image = example["image"]
        if image.shape[0] % self.frames:
            raise UserError(f"split_frames: {image.shape[0]} rows are no multiple of frames={self.frames}")
        return example | {"image": image.reshape(self.frames, -1, *image.shape[1:])}


@dataclass(frozen=True)
class ShuffleFrames:
    """The frames in an order that depends on their content alone: takes away what only their order tells."""

    clip: ClassVar[bool] = True

    def __call__(self, image: Clip) -> Clip:
        random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image).tobytes()))
        return image[random.permutation(len(image))]


@dataclass(frozen=True)
class SpatialCrops:
    """Views in space: `crops` squares, or rectangles of `size`, evenly spaced along the longer side.

    The shorter side becomes max(size) / crop_pct pixels first, see `CentreCrop`. One crop is the centre and
    keeps the clip's axes; several are a leading axis, together with that of the clips where there is one:
    (clips * crops, frames, h, w, c), the crops of each clip next to each other.
    """

    size: tuple[int, int]
    crop_pct: float | int = 0.875
    crops: int = 3
    interpolation: str = "auto"

    clip: ClassVar[bool] = True

    def __post_init__(self):
        check_positive("spatial_crops", crops=self.crops)

    def __call__(self, image: Clip) -> Clip:
        lead, (height, width) = image.shape[:-3], image.shape[-3:-1]
        short = int(max(self.size) / self.crop_pct + 1e-6)
        scale = short / min(height, width)
        whole = (short, int(width * scale)) if height <= width else (int(height * scale), short)
        frames = [resize_image(f, whole, self.interpolation) for f in image.reshape(-1, *image.shape[-3:])]
        free = [side - wanted for side, wanted in zip(whole, self.size)]
        if min(free) < 0:
            raise UserError(f"spatial_crops: no room for {self.size} in {whole} pixels; lower crop_pct")
        views = np.stack([_window(frames, free, self.size, share) for share in _shares(self.crops, free)])
        views = views.reshape(self.crops, *lead, *self.size, image.shape[-1])
        if self.crops == 1:
            return views[0]
        return views if len(lead) == 1 else np.moveaxis(views, 0, 1).reshape(-1, *views.shape[2:])


def _shares(crops: int, free: Sequence[int]) -> list[tuple[float, float]]:
    """Where each crop lies, as shares of the free pixels (down, right)."""
    along = np.linspace(0.0, 1.0, crops) if crops > 1 else np.array([0.5])
    return [(0.5, a) if free[1] >= free[0] else (a, 0.5) for a in along.tolist()]


def _window(
    frames: Sequence[Image], free: Sequence[int], size: tuple[int, int], share: tuple[float, float]
) -> np.ndarray:
    top, left = (round(n * s) for n, s in zip(free, share))
    return np.stack([f[top : top + size[0], left : left + size[1]] for f in frames])
