"""The corruptions of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261) on clean images: 15 and 4 more.

Parameters and order of operations are those of the authors' make_imagenet_c.py, which works on 224 x 224
crops; where that size is written into it, the image's own stands here. OpenCV, SciPy and NumPy take the
places of scikit-image, Pillow and ImageMagick. The benchmark's images are also stored as JPEG of quality
85; `Corrupt(..., stored=True)` does that too.

Frost overlays photographs: the five of the authors, which the package imagecorruptions carries
(`pip install -e '.[robustness]'`; its code, broken with current NumPy, is not used), or those of a
directory.
"""

import importlib.util
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from lookupjax.data.resize import Image
from lookupjax.errors import UserError, nearest

Pixels = np.ndarray  # (h, w, 3) float64 in [0, 1]
MEASURE = 244.0 / 224.0  # elastic_transform's lengths are shares of the side; 244 is the authors' slip

# One entry per severity, 1 to 5.
PARAMETERS: dict[str, tuple] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "shot_noise": (60, 25, 12, 5, 3),  # photons
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of the values
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, blur of the disk's rim
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # sigma, reach, rounds
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),  # up to, step
    "snow": (  # mean, deviation, zoom, threshold, blur radius, blur sigma, share of the image
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weights of image and frost
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # strength, decay
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (  # displacement, its smoothness, affine shift; in MEASURE
        (2.0, 0.7, 0.1),
        (2.0, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # share of the side
    "jpeg_compression": (25, 18, 15, 10, 7),  # quality
    # the four that the benchmark keeps for validation
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "spatter": (  # mean, deviation, sigma, threshold, strength (or sigma of the mud), mud instead of water
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),  # factor, shift
}
CORRUPTIONS = tuple(PARAMETERS)
BENCHMARK = CORRUPTIONS[:15]  # those that mCE is the mean of


def gaussian_noise(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return x + random.normal(size=x.shape, scale=c)


def shot_noise(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return random.poisson(x * c) / c


def impulse_noise(x: Pixels, c, random: np.random.Generator) -> Pixels:
    """Salt and pepper, each value of each channel on its own."""
    hit, salt = random.random(x.shape) < c, random.random(x.shape) < 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def speckle_noise(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return x + x * random.normal(size=x.shape, scale=c)


def _gaussian(x: np.ndarray, sigma: float | int) -> np.ndarray:
    """scikit-image's default: four sigmas, edges repeated; channels are not mixed."""
    return gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], mode="nearest", truncate=4.0)


def gaussian_blur(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return _gaussian(x, c)


def glass_blur(x: Pixels, c, random: np.random.Generator) -> Pixels:
    """Pixels take a neighbour's value, one after the other from the far corner, between two blurs.

    Meant as a swap; but the authors' `a, b = b, a` on views of an array writes one way only.
    """
    sigma, reach, rounds = c
    x = (_gaussian(x, sigma) * 255).astype(np.uint8)
    height, width = x.shape[:2]
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    shifts = random.integers(-reach, reach, (rounds, len(rows), len(columns), 2))
    for turn in shifts:
        for row, line in zip(rows, turn):
            for column, (dx, dy) in zip(columns, line):
                x[row, column] = x[row + dy, column + dx]
    return _gaussian(x / 255.0, sigma)


def defocus_blur(x: Pixels, c, random: np.random.Generator) -> Pixels:
    radius, rim = c
    reach, kernel = (8, 3) if radius <= 8 else (radius, 5)
    distance = np.hypot(*np.meshgrid(*(np.arange(-reach, reach + 1),) * 2))
    disk = (distance <= radius).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (kernel, kernel), sigmaX=rim)
    return cv2.filter2D(x, -1, disk)


def _motion(x: np.ndarray, radius: int, sigma: float | int, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian along `angle` (degrees), edges repeated."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2.0 * sigma**2))
    weights /= weights.sum()
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    total = np.zeros(x.shape)
    for i, weight in enumerate(weights):
        down, right = math.ceil(i * dy - 0.5), math.ceil(i * dx - 0.5)
        r, c = np.clip(rows + down, 0, rows[-1]), np.clip(columns + right, 0, columns[-1])
        total += weight * x[r][:, c]
    return total


def motion_blur(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return _motion(x, *c, angle=random.uniform(-45, 45))


def _stretch(x: np.ndarray, axis: int, n_out: int) -> np.ndarray:
    """Linear interpolation of one axis, corners aligned (scipy.ndimage.zoom, order 1)."""
    place = np.linspace(0.0, x.shape[axis] - 1, n_out)
    low = np.minimum(place.astype(int), max(x.shape[axis] - 2, 0))
    share = (place - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    high = np.minimum(low + 1, x.shape[axis] - 1)
    return x.take(low, axis) * (1 - share) + x.take(high, axis) * share


def _clipped_zoom(x: np.ndarray, factor: float | int) -> np.ndarray:
    """The centre, enlarged by `factor` to the old size."""
    for axis in (0, 1):
        n = x.shape[axis]
        inner = math.ceil(n / factor)
        top = (n - inner) // 2
        x = _stretch(x.take(range(top, top + inner), axis), axis, round(inner * factor))
        trim = (x.shape[axis] - n) // 2
        x = x.take(range(trim, trim + n), axis)
    return x


def zoom_blur(x: Pixels, c, random: np.random.Generator) -> Pixels:
    factors = np.arange(1.0, *c)
    return (x + sum(_clipped_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def _plasma(size: int, decay: float | int, random: np.random.Generator) -> np.ndarray:
    """A height map in [0, 1] by the diamond-square algorithm; `size` is a power of two, edges wrap."""
    height = np.zeros((size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2

        def noisy(total: np.ndarray, wibble: float = wibble) -> np.ndarray:
            return total / 4 + wibble * random.uniform(-wibble, wibble, total.shape)

        corner = height[::step, ::step]
        total = corner + np.roll(corner, -1, 0)
        height[half::step, half::step] = noisy(total + np.roll(total, -1, 1))
        centre = height[half::step, half::step]
        across = centre + np.roll(centre, 1, 0) + corner + np.roll(corner, -1, 1)
        height[::step, half::step] = noisy(across)
        down = centre + np.roll(centre, 1, 1) + corner + np.roll(corner, -1, 0)
        height[half::step, ::step] = noisy(down)
        step, wibble = half, wibble / decay
    height -= height.min()
    return height / height.max()


def fog(x: Pixels, c, random: np.random.Generator) -> Pixels:
    strength, decay = c
    height, width = x.shape[:2]
    size = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    brightest = x.max()
    x = x + strength * _plasma(size, decay, random)[:height, :width, None]
    return x * brightest / (brightest + strength)


@lru_cache(maxsize=4)
def frost_textures(directory: str = "") -> tuple[Image, ...]:
    """The five photographs of frost, RGB.

    Raises:
      UserError: when they are not there.
    """
    place = Path(directory) if directory else None
    spec = importlib.util.find_spec("imagecorruptions")  # found, not imported
    if place is None and spec is not None:
        place = Path(spec.submodule_search_locations[0]) / "frost"
    found = [] if place is None else sorted(place.glob("frost[1-5].*"))
    if len(found) != 5:
        raise UserError(
            f"frost needs the photographs frost1 to frost5, which are not in {place or 'this installation'}; "
            "pip install -e '.[robustness]', or name their directory as `frost`"
        )
    return tuple(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in found)


def frost(x: Pixels, c, random: np.random.Generator, directory: str = "") -> Pixels:
    textures = frost_textures(directory)
    texture = textures[random.integers(len(textures))]
    scale = max(1.0, *(n / m for n, m in zip(x.shape[:2], texture.shape[:2])))
    if scale > 1.0:  # larger images than the authors'
        size = tuple(math.ceil(m * scale) for m in texture.shape[1::-1])
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_LINEAR)
    top, left = (random.integers(0, m - n) if m > n else 0 for n, m in zip(x.shape[:2], texture.shape[:2]))
    crop = texture[top : top + x.shape[0], left : left + x.shape[1]] / 255.0
    return c[0] * x + c[1] * crop


def snow(x: Pixels, c, random: np.random.Generator) -> Pixels:
    mean, deviation, zoom, threshold, radius, sigma, share = c
    layer = _clipped_zoom(random.normal(size=x.shape[:2], loc=mean, scale=deviation), zoom)
    layer = np.where(layer < threshold, 0.0, np.clip(layer, 0.0, 1.0))
    layer = _motion(layer, radius, sigma, random.uniform(-135, -45))[:, :, None]
    grey = x @ np.array([0.299, 0.587, 0.114])
    x = share * x + (1 - share) * np.maximum(x, grey[:, :, None] * 1.5 + 0.5)
    return x + layer + np.rot90(layer, k=2)


WATER, MUD = np.array([175.0, 238.0, 238.0]) / 255.0, np.array([63.0, 42.0, 20.0]) / 255.0


def spatter(x: Pixels, c, random: np.random.Generator) -> Pixels:
    mean, deviation, sigma, threshold, strength, mud = c
    liquid = _gaussian(random.normal(size=x.shape[:2], loc=mean, scale=deviation), sigma)
    liquid[liquid < threshold] = 0.0
    if mud:
        mask = _gaussian((liquid > threshold).astype(np.float32), strength)
        mask[mask < 0.8] = 0.0
        return x * (1 - mask[:, :, None]) + mask[:, :, None] * MUD
    liquid = (liquid * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20.0), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    distance = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss)
    mask = liquid * cv2.blur(distance, (3, 3)).astype(np.float32)
    mask = strength * mask / max(mask.max(), 1e-12)
    return x + mask[:, :, None] * WATER


def contrast(x: Pixels, c, random: np.random.Generator) -> Pixels:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * c + mean


def _change_hsv(x: Pixels, channel: int, change: Callable[[np.ndarray], np.ndarray]) -> Pixels:
    hsv = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[:, :, channel] = np.clip(change(hsv[:, :, channel]), 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def brightness(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return _change_hsv(x, 2, lambda value: value + c)


def saturate(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return _change_hsv(x, 1, lambda saturation: saturation * c[0] + c[1])


def jpeg_compression(x: Pixels, c, random: np.random.Generator) -> Pixels:
    return _jpeg((x * 255).round().astype(np.uint8), c) / 255.0


def _jpeg(image: Image, quality: int) -> Image:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=32)
def _box_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Pillow's BOX filter: the mean of the pixels whose centres lie in the output's."""
    scale = n_in / n_out
    centre = (np.arange(n_out)[:, None] + 0.5) * scale
    place = (np.arange(n_in)[None] + 0.5 - centre) / max(scale, 1.0)
    weight = ((place > -0.5) & (place <= 0.5)).astype(np.float64)
    return weight / weight.sum(1, keepdims=True)


def pixelate(x: Pixels, c, random: np.random.Generator) -> Pixels:
    y = np.round(x * 255)
    for size in ([int(n * c) for n in x.shape[:2]], x.shape[:2]):
        for axis in (1, 0):  # Pillow rounds after each axis
            matrix = _box_matrix(y.shape[axis], max(size[axis], 1))
            y = np.floor(np.moveaxis(np.tensordot(matrix, y, (1, axis)), 0, axis) + 0.5)
    return y / 255.0


def elastic_transform(x: Pixels, c, random: np.random.Generator) -> Pixels:
    """A random affine map, then a smooth random displacement."""
    height, width = x.shape[:2]
    distance, smooth, shift = (MEASURE * min(height, width) * v for v in c)
    centre, arm = np.asarray([height, width]) // 2, min(height, width) // 3
    corners = np.asarray([centre + arm, [centre[0] + arm, centre[1] - arm], centre - arm], np.float32)
    moved = corners + random.uniform(-shift, shift, corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x.astype(np.float32), affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    right, down = (
        gaussian_filter(random.uniform(-1, 1, (height, width)), smooth, mode="reflect", truncate=3) * distance
        for _ in range(2)
    )
    rows, columns = np.mgrid[:height, :width]
    places = (rows + down, columns + right)
    return np.stack([map_coordinates(x[:, :, i], places, order=1, mode="reflect") for i in range(3)], -1)


def check_corruption(name: str) -> None:
    if name not in PARAMETERS:
        near = nearest(name, CORRUPTIONS)
        raise UserError(f"there is no corruption {name!r}{near}; there are {', '.join(CORRUPTIONS)}")


def corrupt(
    image: Image, name: str, severity: int, random: np.random.Generator, frost_directory: str = ""
) -> Image:
    """The uint8 image (h, w, c), grey or RGB, with one corruption.

    Raises:
      UserError: for an unknown corruption, a severity outside 1 to 5, or missing frost textures.
    """
    check_corruption(name)
    if severity not in range(1, 6):
        raise UserError(f"severity {severity} of {name}: severities are 1 to 5")
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    extra = (frost_directory,) if name == "frost" else ()
    result = globals()[name](rgb / 255.0, PARAMETERS[name][severity - 1], random, *extra)
    result = (np.clip(result, 0, 1) * 255 + 1e-6).astype(np.uint8)  # cut off, as the authors' cast does
    return cv2.cvtColor(result, cv2.COLOR_RGB2GRAY)[:, :, None] if image.shape[2] == 1 else result


@dataclass(frozen=True)
class Corrupt:
    """A transform: one corruption at one severity, on uint8 images (so before "normalize").

    The noise depends on `seed` and the image alone, whatever the order, threads or processes.

    Args:
      stored: JPEG of quality 85 afterwards, as the benchmark is stored.
      frost: directory of the frost photographs, "" for those of imagecorruptions.
    """

    corruption: str
    severity: int
    seed: int = 0
    stored: bool = False
    frost: str = ""

    def __post_init__(self):
        check_corruption(self.corruption)

    def __call__(self, image: Image) -> Image:
        key = [
            self.seed,
            CORRUPTIONS.index(self.corruption),
            self.severity,
            zlib.crc32(np.ascontiguousarray(image)),
        ]
        result = corrupt(image, self.corruption, self.severity, np.random.default_rng(key), self.frost)
        if not self.stored:
            return result
        grey = image.shape[2] == 1
        result = _jpeg(np.repeat(result, 3, axis=2) if grey else result, 85)
        return cv2.cvtColor(result, cv2.COLOR_RGB2GRAY)[:, :, None] if grey else result
