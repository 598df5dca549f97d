"""Handwritten digits that run around a circle: clips whose class no single frame tells.

A digit visits the eight corners of an octagon, each once, in steps of 45 or 135 degrees, clockwise or not;
where it begins is random. The four clips of one digit therefore hold the same eight pictures in four orders:
only their order tells the classes apart, and of shuffled frames nobody can say more than chance.
"""

import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from lookupjax.data.builders.digits import read_digits, split_digits

FRAMES, SIDE, DIGIT = 8, 24, 8
RADIUS = 6.0  # of the circle, pixels
STEPS = {  # corners of the octagon per frame; odd, so that all of them are visited
    "clockwise": 1,
    "clockwise_fast": 3,
    "counterclockwise_fast": 5,
    "counterclockwise": 7,
}


def pictures(digit: np.ndarray, centre: tuple[int, int]) -> np.ndarray:
    """The digit (8, 8) of values 0 to 16 at the corners of the octagon, clockwise: uint8 (8, 24, 24)."""
    canvas = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
    pixels = np.round(digit * (255 / 16)).astype(np.uint8)
    for corner, picture in enumerate(canvas):
        angle = 2 * np.pi * corner / FRAMES
        top = round(centre[0] + RADIUS * np.sin(angle) - DIGIT / 2)
        left = round(centre[1] + RADIUS * np.cos(angle) - DIGIT / 2)
        picture[top : top + DIGIT, left : left + DIGIT] = pixels
    return canvas


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Grey clips of 8 frames of 24x24 pixels, stored as one PNG with the frames below each other.

    Every digit of scikit-learn moves in all four ways; the splits are those of `digits`: 5,748 clips for
    training, 1,440 for test.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(FRAMES * SIDE, SIDE, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(STEPS)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(indices) for split, indices in split_digits().items()}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[str, dict]]:
        digits = read_digits()
        for index in indices.tolist():
            random = np.random.default_rng(index)
            row, column, start = (int(n) for n in random.integers(0, (3, 3, FRAMES)))
            around = pictures(digits.images[index], (SIDE // 2 - 1 + row, SIDE // 2 - 1 + column))
            for name, step in STEPS.items():
                frames = around[(start + step * np.arange(FRAMES)) % FRAMES]
                _, png = cv2.imencode(".png", frames.reshape(FRAMES * SIDE, SIDE, 1))
                yield f"{index}_{name}", {"image": io.BytesIO(png.tobytes()), "label": name}
