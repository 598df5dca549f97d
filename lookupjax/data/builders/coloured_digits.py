"""Handwritten digits drawn in one of six inks on one of five papers: images with three free attributes."""

import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from lookupjax.data.builders.digits import read_digits, split_digits

INKS = {  # RGB
    "red": (200, 30, 30),
    "orange": (220, 130, 0),
    "green": (20, 140, 40),
    "blue": (30, 60, 200),
    "violet": (130, 30, 160),
    "black": (10, 10, 10),
}
PAPERS = {
    "white": (250, 250, 250),
    "yellow": (250, 240, 170),
    "pink": (250, 205, 215),
    "sky": (190, 225, 250),
    "grey": (180, 180, 180),
}
ATTRIBUTES = ("digit", "ink", "paper")
SIDE = 16


def draw(digit: np.ndarray, ink: tuple[int, ...], paper: tuple[int, ...]) -> np.ndarray:
    """The 8x8 digit of values 0 to 16, enlarged, as uint8 RGB (16, 16, 3)."""
    cover = cv2.resize(digit.astype(np.float32) / 16, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.round(cover * np.array(ink) + (1 - cover) * np.array(paper)).astype(np.uint8)


class ColouredDigits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's digits in colour; "attributes" are the numbers of digit, ink and paper.

    Inks and papers are drawn independently of the digit, by its index. The splits are those of `digits`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
            "attributes": tfds.features.Tensor(shape=(len(ATTRIBUTES),), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(indices) for split, indices in split_digits().items()}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict]]:
        digits = read_digits()
        inks, papers = tuple(INKS.values()), tuple(PAPERS.values())
        for index in indices.tolist():
            random = np.random.default_rng(index)
            ink, paper = int(random.integers(len(inks))), int(random.integers(len(papers)))
            pixels = draw(digits.images[index], inks[ink], papers[paper])
            _, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            label = int(digits.target[index])
            yield (
                index,
                {
                    "image": io.BytesIO(png.tobytes()),
                    "label": label,
                    "attributes": np.array([label, ink, paper], np.int32),
                },
            )
