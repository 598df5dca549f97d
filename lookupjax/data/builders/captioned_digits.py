"""Scenes of two handwritten digits with two true captions each: "a large red 7 above a small blue 3"."""

import io
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from lookupjax.data.builders.digits import read_digits, split_digits

COLOURS = {"red": (245, 80, 80), "green": (70, 205, 90), "blue": (100, 120, 255), "yellow": (245, 215, 70)}
SIZES = {"small": 8, "large": 16}  # pixels a side
LAYOUTS = (("above", "below"), ("left of", "right of"))  # how the first digit lies to the second, and back
SIDE = 32
SCENES = {"train": 16000, "test": 500}
HELD_OUT = 5  # one in so many combinations of attributes occurs in the test split alone
CLASSES = 2 * len(LAYOUTS) * len(SIZES) * len(COLOURS) * 10


class Thing(NamedTuple):
    """A digit's attributes, as numbers."""

    size: int
    colour: int
    digit: int

    def text(self) -> str:
        return f"a {tuple(SIZES)[self.size]} {tuple(COLOURS)[self.colour]} {self.digit}"


class Scene(NamedTuple):
    """Attribute tuple of a scene."""

    layout: int
    first: Thing
    second: Thing

    @property
    def held_out(self) -> bool:
        """Whether scenes with these attributes are kept for testing."""
        return zlib.crc32(repr(self).encode()) % HELD_OUT == 0

    def classes(self) -> tuple[int, int]:
        """What is where: numbers of (layout, first or second, size, colour, digit), 0 to CLASSES - 1."""
        sizes = (len(LAYOUTS), 2, len(SIZES), len(COLOURS), 10)
        one, two = (
            int(np.ravel_multi_index((self.layout, place, *thing), sizes))
            for place, thing in enumerate((self.first, self.second))
        )
        return one, two

    def captions(self) -> tuple[str, str]:
        """The two true ones: the first digit in relation to the second, and the other way round."""
        forward, backward = LAYOUTS[self.layout]
        one, two = self.first.text(), self.second.text()
        return f"{one} {forward} {two}", f"{two} {backward} {one}"


def draw_scene(random: np.random.Generator, held_out: bool) -> Scene:
    """Attributes drawn uniformly from those that are held out, or from the others."""
    while True:
        things = [Thing(*(int(random.integers(n)) for n in (len(SIZES), len(COLOURS), 10))) for _ in range(2)]
        scene = Scene(int(random.integers(len(LAYOUTS))), *things)
        if scene.held_out == held_out:
            return scene


def paint(scene: Scene, digits: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """The scene as uint8 RGB (32, 32, 3): each digit in the middle of its half, on noisy dark ground.

    Its pixels fall on those of a grid of 4 x 4 patches, so that small models learn it in minutes.

    Args:
      digits: images (8, 8) of values 0 to 16, of the first and the second thing.
    """
    canvas = random.uniform(0, 40, (SIDE, SIDE, 1)).repeat(3, axis=2)
    for place, (thing, digit) in enumerate(zip((scene.first, scene.second), digits)):
        side = tuple(SIZES.values())[thing.size]
        cover = cv2.resize(digit.astype(np.float32) / 16, (side, side), interpolation=cv2.INTER_LINEAR)[
            ..., None
        ]
        along = place * SIDE // 2 + (SIDE // 2 - side) // 2
        across = (SIDE - side) // 2
        top, left = (along, across) if scene.layout == 0 else (across, along)
        window = canvas[top : top + side, left : left + side]
        window[:] = cover * np.array(tuple(COLOURS.values())[thing.colour]) + (1 - cover) * window
    return np.round(canvas).astype(np.uint8)


class CaptionedDigits(tfds.core.GeneratorBasedBuilder):
    """Scikit-learn's digits in pairs; the combinations of attributes in "test" do not occur in "train".

    The digits themselves come from the splits of `digits`. "label" is the distribution over the classes
    (place, size, colour, digit) of the two digits, half for each: what an encoder can be trained on.
    """

    VERSION = tfds.core.Version("3.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
            "image/id": np.int64,
            "label": tfds.features.Tensor(shape=(CLASSES,), dtype=np.float32),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split, indices) for split, indices in split_digits().items()}

    def _generate_examples(self, split: str, indices: np.ndarray) -> Iterator[tuple[int, dict]]:
        digits = read_digits()
        by_digit = [indices[digits.target[indices] == digit] for digit in range(10)]
        first = 0 if split == "train" else SCENES["train"]
        for number in range(first, first + SCENES[split]):
            random = np.random.default_rng(number)
            scene = draw_scene(random, held_out=split == "test")
            things = (scene.first, scene.second)
            images = [digits.images[random.choice(by_digit[thing.digit])] for thing in things]
            _, png = cv2.imencode(".png", cv2.cvtColor(paint(scene, images, random), cv2.COLOR_RGB2BGR))
            label = np.zeros((CLASSES,), np.float32)
            label[list(scene.classes())] = 0.5
            captions = [{"id": 2 * number + i, "text": text} for i, text in enumerate(scene.captions())]
            yield (
                number,
                {
                    "image": io.BytesIO(png.tobytes()),
                    "image/id": number,
                    "label": label,
                    "captions": captions,
                },
            )
