"""A small faint lesion in clutter: grey scans of which only the lesion's grain tells the class.

The ground is noise of three scales, and on it lie distractors, strokes of every direction and discs, brighter
than the lesion. The lesion is a round patch of fine stripes; its kinds are four directions of the stripes.
Neither a scan's brightness nor the lesion's place tells anything.
"""

import io
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

SIDE = 48  # pixels
SCANS = {"train": 6000, "test": 1000}
KINDS = {"flat": 0.0, "rising": 45.0, "upright": 90.0, "falling": 135.0}  # direction of the stripes, degrees
DIAMETER, PERIOD = 11, 3.6  # of the lesion and its stripes, pixels
CONTRAST = 26.0  # of the stripes, grey values
GROUND = ((0.7, 8.0), (2.0, 10.0), (8.0, 14.0))  # (scale in pixels, grey values)
DISTRACTORS, BRIGHTER = (5, 9), (30.0, 60.0)  # how many, and by how many grey values
SUBPIXEL = 4  # binary digits of OpenCV's coordinates


def ground(random: np.random.Generator) -> np.ndarray:
    """Noise of all scales: float32 (48, 48)."""
    scan = np.full((SIDE, SIDE), 100.0, np.float32)
    for scale, strength in GROUND:
        noise = cv2.GaussianBlur(random.normal(size=(SIDE, SIDE)).astype(np.float32), (0, 0), scale)
        scan += strength * noise / noise.std()
    return scan


def distractor(random: np.random.Generator) -> np.ndarray:
    """What a stroke or a disc covers somewhere in the scan: uint8 (48, 48), with soft edges."""
    cover, place = np.zeros((SIDE, SIDE), np.uint8), random.uniform(0, SIDE, 2)
    ends = np.round(place * 2**SUBPIXEL).astype(int)
    if random.random() < 0.6:
        angle, half = random.uniform(0, np.pi), random.uniform(3, 8)
        way = np.round(half * 2**SUBPIXEL * np.array([np.cos(angle), np.sin(angle)])).astype(int)
        cv2.line(cover, (ends - way).tolist(), (ends + way).tolist(), 255, 2, cv2.LINE_AA, SUBPIXEL)
    else:
        radius = round(random.uniform(1.5, 4) * 2**SUBPIXEL)
        cv2.circle(cover, ends.tolist(), radius, 255, -1, cv2.LINE_AA, SUBPIXEL)
    return cover


def draw(kind: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 scan (48, 48), the lesion's box: top, left, bottom, right, the last two exclusive)."""
    scan = ground(random)
    top, left = (int(n) for n in random.integers(1, SIDE - DIAMETER, 2))
    box = np.array([top, left, top + DIAMETER, left + DIAMETER], np.int32)
    inside = (slice(top, top + DIAMETER), slice(left, left + DIAMETER))
    missing = int(random.integers(*DISTRACTORS))
    while missing:
        cover = distractor(random)
        if not cover[inside].any():  # nothing hides the lesion
            scan += random.uniform(*BRIGHTER) * cover / 255
            missing -= 1
    y, x = np.mgrid[:DIAMETER, :DIAMETER] - (DIAMETER - 1) / 2
    angle = np.deg2rad(KINDS[kind])
    across = x * np.sin(angle) + y * np.cos(angle)
    window = np.clip((DIAMETER / 2 - np.hypot(x, y)) / 2, 0, 1)
    scan[inside] += CONTRAST * window * np.cos(2 * np.pi * across / PERIOD + random.uniform(0, 2 * np.pi))
    return np.clip(np.round(scan), 0, 255).astype(np.uint8), box


class Lesions(tfds.core.GeneratorBasedBuilder):
    """48x48 grey scans with one lesion each, of four kinds; "lesion" is its box in pixels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(KINDS)),
            "lesion": tfds.features.Tensor(shape=(4,), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SCANS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        first = 0 if split == "train" else SCANS["train"]
        for number in range(first, first + SCANS[split]):
            kind = tuple(KINDS)[number % len(KINDS)]
            scan, box = draw(kind, np.random.default_rng(number))
            _, png = cv2.imencode(".png", scan)
            yield number, {"image": io.BytesIO(png.tobytes()), "label": kind, "lesion": box}
