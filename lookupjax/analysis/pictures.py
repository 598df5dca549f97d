"""Pictures as bytes, for pages and files: no matplotlib, which is slow to import."""

import base64
import io
import math

import numpy as np
from PIL import Image


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Any value range to [0, 1], grey to RGB."""
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    image = (image - low) / max(high - low, 1e-9)
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def mosaic(frames: np.ndarray, count: int) -> np.ndarray:
    """(h, w, c): `count` of the frames (t, h, w, c), evenly spaced, row by row in a nearly square picture."""
    frames = frames[np.arange(count) * len(frames) // count]
    columns = math.ceil(math.sqrt(count))
    blank = np.zeros((-count % columns, *frames.shape[1:]), frames.dtype)
    rows = np.concatenate([frames, blank]).reshape(-1, columns, *frames.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def png(image: np.ndarray, side: int, enlarge: bool = True) -> bytes:
    """An image (h, w, c) of any value range as a PNG, the longer side `side` pixels (or at most so many)."""
    pixels = Image.fromarray(np.round(255 * as_rgb(image)[..., :3]).astype(np.uint8))
    scale = side / max(pixels.size)
    if enlarge or scale < 1:
        size = tuple(max(1, round(n * scale)) for n in pixels.size)
        pixels = pixels.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """A PNG as the address of a picture that lies in the page itself."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
