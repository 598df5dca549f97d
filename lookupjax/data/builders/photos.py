"""Tiles of three photographs that scikit-learn and Matplotlib ship: a toy for super-resolution."""

import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
from matplotlib.cbook import get_sample_data
from sklearn.datasets import load_sample_image

TILE = 64
EVERY = 4  # each fourth tile is for test


def photos() -> dict[str, np.ndarray]:
    """{name: RGB} at half size: the JPEG artefacts of the originals average out."""
    with get_sample_data("grace_hopper.jpg", asfileobj=True) as file:
        hopper = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
    full = {
        "china": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
        "hopper": hopper,
    }
    return {
        name: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for name, image in full.items()
    }


def tiles(image: np.ndarray) -> Iterator[np.ndarray]:
    """The squares of `TILE` pixels that do not overlap, row by row."""
    for top in range(0, image.shape[0] - TILE + 1, TILE):
        for left in range(0, image.shape[1] - TILE + 1, TILE):
            yield image[top : top + TILE, left : left + TILE]


class Photos(tfds.core.GeneratorBasedBuilder):
    """46 RGB tiles of 64x64 pixels, labelled by their photograph: 34 for training, 12 for test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(TILE, TILE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["china", "flower", "hopper"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[str, dict]]:
        for name, image in photos().items():
            for i, tile in enumerate(tiles(image)):
                if (i % EVERY == EVERY // 2) == test:
                    _, png = cv2.imencode(".png", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR))
                    yield f"{name}_{i}", {"image": io.BytesIO(png.tobytes()), "label": name}
