"""Resizing of uint8 images: OpenCV's fast rules and Pillow's antialiased ones.

OpenCV's bilinear and bicubic read 2x2 and 4x4 pixels whatever the scale, so they alias when shrinking;
Pillow, timm and torchvision's antialiased transforms widen the kernel instead. Published accuracies of
"bicubic" models mean the latter.
"""

from functools import lru_cache

import cv2
import numpy as np

from lookupjax.errors import UserError, nearest

Image = np.ndarray  # (h, w, c), uint8 until Normalize, then float32

OPENCV = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}
ANTIALIASED = {"bilinear": 1.0, "bicubic": 2.0}  # half width of the kernel, in pixels of the smaller image
INTERPOLATIONS = ("auto", *OPENCV, *ANTIALIASED)


def with_channels(image: np.ndarray) -> Image:
    """OpenCV drops a channel axis of length 1; this puts it back."""
    return image[:, :, None] if image.ndim == 2 else image


def check_interpolation(name: str) -> None:
    """Raises UserError unless `name` is one of INTERPOLATIONS."""
    if name not in INTERPOLATIONS:
        raise UserError(
            f"interpolation={name!r} is unknown{nearest(name, INTERPOLATIONS)}; there are {INTERPOLATIONS}"
        )


def _kernel(name: str, x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    if name == "bilinear":
        return np.maximum(0.0, 1.0 - x)
    a = -0.5  # Pillow's (Catmull-Rom); OpenCV's bicubic has -0.75
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@lru_cache(maxsize=512)
def resize_matrix(n_in: int, n_out: int, start: int, stop: int, name: str) -> np.ndarray:
    """Rows start..stop-1 of the (n_out, n_in) matrix of an antialiased resize, float32.

    Weight of input j for output i: k((j - c_i) / s), c_i = (i + 0.5) n_in / n_out - 0.5,
    s = max(n_in / n_out, 1), rows normalised to sum 1.
    """
    ratio = n_in / n_out
    centres = (np.arange(start, stop)[:, None] + 0.5) * ratio - 0.5
    weights = _kernel(name, (np.arange(n_in)[None] - centres) / max(ratio, 1.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def antialiased_window(
    image: Image, size: tuple[int, int], top: int, left: int, window: tuple[int, int], name: str
) -> Image:
    """The window (top, left, height, width) of `image` resized to `size`; only the window is computed."""
    rows = resize_matrix(image.shape[0], size[0], top, top + window[0], name)
    columns = resize_matrix(image.shape[1], size[1], left, left + window[1], name)
    used_rows, used_columns = np.flatnonzero(rows.any(0)), np.flatnonzero(columns.any(0))
    (y0, y1), (x0, x1) = used_rows[[0, -1]], used_columns[[0, -1]]
    part = image[y0 : y1 + 1, x0 : x1 + 1].astype(np.float32)
    height, width, channels = part.shape
    part = (rows[:, y0 : y1 + 1] @ part.reshape(height, width * channels)).reshape(-1, width, channels)
    part = np.einsum("ow,hwc->hoc", columns[:, x0 : x1 + 1], part, optimize=True)
    return np.clip(np.rint(part), 0, 255).astype(np.uint8)


def resize_image(image: Image, size: tuple[int, int], interpolation: str = "auto") -> Image:
    """`image` at `size` = (height, width).

    "auto": area averaging when shrinking, bilinear when growing. "area", "linear", "cubic", "nearest":
    OpenCV's. "bilinear", "bicubic": antialiased, as Pillow computes them.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if interpolation in ANTIALIASED:
        return antialiased_window(image, size, 0, 0, size, interpolation)
    if interpolation == "auto":
        shrinks = height * width < image.shape[0] * image.shape[1]
        interpolation = "area" if shrinks else "linear"
    return with_channels(cv2.resize(image, (width, height), interpolation=OPENCV[interpolation]))
