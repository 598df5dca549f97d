"""Pictures with what was written about them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from lookupjax.analysis.plots import LOOK

COLUMNS = 4
RIGHT, OTHER = "#009E73", "#000000"


def caption_samples(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    path: Path,
) -> None:
    """Writes a sheet of images, each with its caption in bold and a reference below.

    A caption that is one of its references is green.

    Args:
      images: (h, w, c) of any range; each is stretched to its own least and greatest value.
    """
    rows = -(-len(images) // COLUMNS)
    with rc_context(LOOK | {"axes.grid": False}):
        figure = Figure(figsize=(4.0 * COLUMNS, 5.0 * rows), layout="constrained")
        places = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for place in places:
            place.set_axis_off()
        for place, image, caption, truth in zip(places, images, captions, references):
            image = image.astype(np.float32)
            image = (image - image.min()) / max(float(image.max() - image.min()), 1e-6)
            place.imshow(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image, interpolation="nearest")
            right = caption in truth
            lines = textwrap.wrap(caption, 30) or ["(nothing)"]
            place.set_title("\n".join(lines), fontsize=14, weight="bold", color=RIGHT if right else OTHER)
            nearest = caption if right else truth[0]
            below = "is a reference" if right else "\n".join(textwrap.wrap(f"reference: {nearest}", 36))
            place.text(0.5, -0.03, below, transform=place.transAxes, ha="center", va="top", fontsize=12)
        figure.savefig(path, dpi=80, facecolor="white")
