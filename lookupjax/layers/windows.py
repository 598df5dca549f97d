"""Cutting maps into equal windows and back: the layout of local attention."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pad_to_multiple(
    x: Float[Array, "b h w c"], multiple: tuple[int, int], *, centre: bool = False
) -> tuple[Float[Array, "b h2 w2 c"], tuple[int, int]]:
    """Zeros at the bottom and right until `multiple` divides both axes.

    Returns the padded map and where the old one starts in it: (0, 0), or half of the padding with
    `centre`.
    """
    extra = [-n % m for n, m in zip(x.shape[1:3], multiple)]
    top, left = (n // 2 if centre else 0 for n in extra)
    if any(extra):
        x = jnp.pad(x, ((0, 0), (top, extra[0] - top), (left, extra[1] - left), (0, 0)))
    return x, (top, left)


def to_windows(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b k n c"]:
    """(b, h, w, c) -> (b, windows, tokens of a window, c), both row-major; `window` must divide (h, w)."""
    b, h, w, c = x.shape
    p, q = window
    x = x.reshape(b, h // p, p, w // q, q, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // p) * (w // q), p * q, c)


def from_windows(
    x: Float[Array, "b k n c"], window: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """The inverse of `to_windows` for a map of `size`."""
    b, c = x.shape[0], x.shape[-1]
    (p, q), (h, w) = window, size
    x = x.reshape(b, h // p, w // q, p, q, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, c)
