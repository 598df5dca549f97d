"""Pixel operations on uint8 images, defined as Pillow defines them (ImageOps, ImageEnhance)."""

import cv2
import numpy as np

from lookupjax.data.resize import Image, with_channels

GREY_WEIGHTS = cv2.COLOR_RGB2GRAY  # 0.299 R + 0.587 G + 0.114 B
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
VALUES = np.arange(256)


def look_up(image: Image, table: np.ndarray) -> Image:
    """table[value] for every pixel; `table` is (256,) or, per channel, (256, c)."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return with_channels(cv2.LUT(image, table if table.ndim == 1 else table[None]))


def _per_channel(image: Image, table) -> Image:
    """Looks every channel up in the table that `table(its histogram)` makes of it."""
    channels = np.ascontiguousarray(image)
    histograms = [cv2.calcHist([channels], [c], None, [256], [0, 256]).ravel() for c in range(image.shape[2])]
    return look_up(image, np.stack([table(h.astype(np.int64)) for h in histograms], 1))


def autocontrast(image: Image) -> Image:
    """Stretches each channel to the full range."""

    def table(histogram: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(histogram)
        low, high = used[0], used[-1]
        if high <= low:
            return VALUES
        scale = 255.0 / (high - low)
        return np.clip(VALUES * scale - low * scale, 0, 255).astype(int)

    return _per_channel(image, table)


def equalize(image: Image) -> Image:
    """Makes each channel's histogram flat."""

    def table(histogram: np.ndarray) -> np.ndarray:
        used = histogram[histogram > 0]
        step = (used.sum() - used[-1]) // 255
        if len(used) <= 1 or step == 0:
            return VALUES
        below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        return (below + step // 2) // step

    return _per_channel(image, table)


def invert(image: Image) -> Image:
    return 255 - image


def posterize(image: Image, bits: int) -> Image:
    """Keeps the `bits` highest bits."""
    return image & np.uint8(0xFF & ~(2 ** (8 - min(bits, 8)) - 1))


def solarize(image: Image, threshold: int) -> Image:
    """Inverts the values from `threshold` on."""
    return look_up(image, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def solarize_add(image: Image, amount: int, threshold: int = 128) -> Image:
    """Adds to the values below `threshold`."""
    return look_up(image, np.where(threshold > VALUES, VALUES + amount, VALUES))


def grey(image: Image) -> np.ndarray:
    """Luma (h, w)."""
    return cv2.cvtColor(image, GREY_WEIGHTS) if image.shape[2] == 3 else image[:, :, 0]


def colour(image: Image, factor: float) -> Image:
    """Saturation: 0 is grey, 1 the image."""
    if image.shape[2] != 3:
        return image
    return cv2.addWeighted(image, factor, cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB), 1.0 - factor, 0.0)


def contrast(image: Image, factor: float) -> Image:
    """0 is the mean luma everywhere, 1 the image."""
    mean = int(grey(image).mean() + 0.5)
    return look_up(image, np.trunc(mean + factor * (VALUES - mean)))


def brightness(image: Image, factor: float) -> Image:
    """0 is black, 1 the image."""
    return look_up(image, np.trunc(factor * VALUES))


def sharpness(image: Image, factor: float) -> Image:
    """0 is smoothed by a 3x3 kernel (the one-pixel border is not), 1 the image."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = with_channels(cv2.filter2D(image, -1, SMOOTH))[1:-1, 1:-1]
    return with_channels(cv2.addWeighted(image, factor, smooth, 1.0 - factor, 0.0))


def hue(image: Image, shift: float) -> Image:
    """Turns the hue by `shift` of a full circle (OpenCV's 8-bit HSV)."""
    if image.shape[2] != 3:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[:, :, 0] += np.uint8(round(shift * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def warp(image: Image, inverse: np.ndarray, fill: tuple[int, ...], interpolation: int) -> Image:
    """out(x, y) = image(inverse (x, y, 1)), coordinates measured from the corner of the first pixel.

    Outside the image it is `fill` (one value per channel, or one for all).
    """
    matrix = np.asarray(inverse, np.float64).copy()
    matrix[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5  # to OpenCV's pixel centres
    size = (image.shape[1], image.shape[0])
    value = tuple(fill) * image.shape[2] if len(fill) == 1 else tuple(fill[: image.shape[2]])
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return with_channels(cv2.warpAffine(image, matrix, size, flags=flags, borderValue=value))


def rotation(degrees: float, height: int, width: int) -> np.ndarray:
    """The inverse map of a counter-clockwise rotation about the centre."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([width / 2, height / 2])
    return np.concatenate([turn, (centre - turn @ centre)[:, None]], 1)
