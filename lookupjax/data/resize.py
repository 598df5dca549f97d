"""Resizing of uint8 images: OpenCV's fast rules and Pillow's antialiased ones.

OpenCV's bilinear and bicubic read 2x2 and 4x4 pixels whatever the scale, so they alias when shrinking;
Pillow, and with it timm and torchvision, widens the kernel instead. Published accuracies of "bicubic" models
mean the latter, which take about ten times as long: more than decoding the image.
"""

import cv2
import numpy as np
from PIL import Image as Pillow

from lookupjax.errors import UserError, nearest

Image = np.ndarray  # (h, w, c), uint8 until Normalize, then float32

OPENCV = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}
ANTIALIASED = {"bilinear": Pillow.Resampling.BILINEAR, "bicubic": Pillow.Resampling.BICUBIC}
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


def resize_image(image: Image, size: tuple[int, int], interpolation: str = "auto") -> Image:
    """`image` at `size` = (height, width).

    "area", "linear", "cubic", "nearest": OpenCV's. "bilinear", "bicubic": Pillow's, antialiased.
    "auto": area averaging when both sides shrink to half or less, else linear.
    """
    return resize_window(image, size, (0, 0), size, interpolation)


def resize_window(
    image: Image, whole: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], interpolation: str
) -> Image:
    """The window of `size` at `corner` = (top, left) of `image` resized to `whole`."""
    top, left = corner
    if interpolation in ANTIALIASED and image.shape[:2] != whole:
        step_y, step_x = image.shape[0] / whole[0], image.shape[1] / whole[1]
        box = (left * step_x, top * step_y, (left + size[1]) * step_x, (top + size[0]) * step_y)
        picture = Pillow.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        return with_channels(np.asarray(picture.resize(size[::-1], ANTIALIASED[interpolation], box)))
    if image.shape[:2] != whole:
        if interpolation == "auto":
            shrinks = 2 * whole[0] <= image.shape[0] and 2 * whole[1] <= image.shape[1]
            interpolation = "area" if shrinks else "linear"
        image = with_channels(cv2.resize(image, whole[::-1], interpolation=OPENCV[interpolation]))
    return image[top : top + size[0], left : left + size[1]]
