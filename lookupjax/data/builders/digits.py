"""The 1,797 handwritten digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits")."""

import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

TEST_EXAMPLES = 360


def read_digits():
    """scikit-learn's bunch of `images` and `target`."""
    from sklearn.datasets import load_digits  # takes a second: when a dataset is made, not in every run

    return load_digits()


def split_digits() -> dict[str, np.ndarray]:
    """Indices of the images of each split."""
    from sklearn.model_selection import train_test_split

    labels = read_digits().target
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_EXAMPLES, stratify=labels, random_state=0
    )
    return {"train": train, "test": test}


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of ten classes; a fixed stratified split into 1,437 for training and 360 for test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(indices) for split, indices in split_digits().items()}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict]]:
        digits = read_digits()
        for index in indices.tolist():
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            _, png = cv2.imencode(".png", pixels)
            label = int(digits.target[index])
            yield index, {"image": io.BytesIO(png.tobytes()), "label": label}
