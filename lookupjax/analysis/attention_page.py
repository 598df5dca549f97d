"""One self-contained HTML page to click through a model's attention: image, block, head, token.

The weights lie in the page as bytes: every row (what one query reads) scaled by its own largest weight, which
stands beside it as float32. Fine grids are binned until the page is small enough.
"""

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lookupjax.analysis.attention_maps import AttentionMap, Tokens
from lookupjax.analysis.page import STYLE
from lookupjax.analysis.pictures import data_uri, png
from lookupjax.errors import UserError
from lookupjax.files import write_whole

FINEST = (32, 28, 20, 14, 10, 7)  # cells on a side of a shown grid, tried in this order
LARGEST = 24_000_000  # bytes of weights in a page
PICTURE = 448  # pixels of the longer side of an image in the page


def bins(tokens: Tokens, finest: int) -> tuple[np.ndarray, dict]:
    """(cell of every token, what the page needs to know of the cells)."""
    grid = tokens.grid
    if grid is None:
        return np.arange(tokens.count), {"name": tokens.name, "prefix": tokens.count, "grid": None}
    cells = [min(n, finest) for n in grid[-2:]]
    rows, columns = (np.arange(n) * m // n for n, m in zip(grid[-2:], cells))
    place = rows[:, None] * cells[1] + columns[None]
    if len(grid) == 3:  # the frames of a clip, as in `pictures.mosaic`
        across = math.ceil(math.sqrt(grid[0]))
        down = math.ceil(grid[0] / across)
        frame = np.arange(grid[0])[:, None, None]
        row = frame // across * cells[0] + rows[None, :, None]
        place = row * (across * cells[1]) + frame % across * cells[1] + columns[None, None]
        cells = [down * cells[0], across * cells[1]]
    cell = np.concatenate([np.arange(tokens.prefix), tokens.prefix + place.ravel()])
    side = {"name": tokens.name, "prefix": tokens.prefix, "grid": cells, "of": list(grid)}
    return cell, side | ({"names": list(tokens.names)} if tokens.names else {})


def binned(weights: np.ndarray, queries: np.ndarray, keys: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Weights (h, q, k) between cells: summed over the keys of a cell, averaged over its queries."""
    from_keys = np.zeros((len(keys), shape[1]), np.float32)
    from_keys[np.arange(len(keys)), keys] = 1.0
    to_queries = np.zeros((shape[0], len(queries)), np.float32)
    to_queries[queries, np.arange(len(queries))] = 1.0
    to_queries /= np.maximum(to_queries.sum(1, keepdims=True), 1.0)
    return to_queries @ (weights @ from_keys)


def cells_of(side: dict) -> int:
    return side["prefix"] + (math.prod(side["grid"]) if side["grid"] else 0)


def packed(weights: np.ndarray) -> dict[str, str]:
    """Weights (..., q, k) as base64: a byte each, times the row's largest weight."""
    top = weights.max(-1).astype(np.float32)
    scaled = np.round(255 * weights / np.maximum(top, 1e-30)[..., None]).astype(np.uint8)
    return {
        "bytes": base64.b64encode(scaled.tobytes()).decode(),
        "top": base64.b64encode(top.tobytes()).decode(),
    }


def view(m: AttentionMap, finest: int) -> dict:
    """One entry of the page's list: a map of all images."""
    (queries, asks), (keys, answers) = bins(m.queries, finest), bins(m.keys, finest)
    shape = cells_of(asks), cells_of(answers)
    weights = np.stack([binned(example, queries, keys, shape) for example in m.weights])
    heads = weights.shape[1]
    return {
        "path": m.path,
        "kind": m.kind,
        "asks": asks,
        "answers": answers,
        "heads": heads,
        **packed(weights),
    }


def write_page(
    maps: Sequence[AttentionMap],
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    heading: str,
    path: Path,
) -> None:
    """Writes the page.

    Args:
      maps: of one batch, whose images (h, w, c), of clips their `mosaic`, have these titles.

    Raises:
      UserError: when the page would be too large at any resolution.
    """
    for finest in FINEST:
        total = 0
        for m in maps:
            shape = [cells_of(bins(side, finest)[1]) for side in (m.queries, m.keys)]
            total += math.prod(m.weights.shape[:2]) * math.prod(shape)
        if total <= LARGEST:
            break
    else:
        raise UserError(
            f"the page would hold {total / 1e6:.0f} MB of weights; show fewer images, or layers (--layers)"
        )
    data = {
        "heading": heading,
        "titles": list(titles),
        "pictures": [data_uri(png(image, PICTURE)) for image in images],
        "views": [view(m, finest) for m in maps],
    }
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    template = (Path(__file__).parent / "attention_page.html").read_text()
    write_whole(path, template.replace("/*STYLE*/", STYLE).replace("/*DATA*/null", text))
