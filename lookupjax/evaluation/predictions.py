"""What a classifier said of every example of a split, kept in the work directory for the report.

`evaluation/<evaluator>/predictions_<dataset>_<split>_<call>.npz` holds, for each example, its "index" in the
split, "label", "predicted", "confidence" (the largest probability) and "probability" (of the label); the
inputs of the most confident mistakes as "picture/<index>" (the bytes of a PNG); and "about", JSON on the
dataset.
"""

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from jaxtyping import Float, Int

from lookupjax.analysis.pictures import mosaic, png
from lookupjax.data.loader import EvalBatches
from lookupjax.errors import UserError
from lookupjax.files import write_whole
from lookupjax.tasks.base import Batch, Task

CHOICES = ("label", "predicted", "confidence", "probability")
COLUMNS = ("index", *CHOICES)
MISTAKES, SIDE, FRAMES = 12, 128, 4  # pictures, pixels of their longer side, frames of a clip in one


@dataclass(frozen=True)
class FiguresAndChoices:
    """The task's figures of each example, and its choices as "choice/label" and so on.

    Equal instances share one compiled program.
    """

    task: Task

    def __call__(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        chosen = {f"choice/{name}": x for name, x in self.task.choices(outputs, batch).items()}
        return self.task.evaluate(outputs, batch) | chosen


@dataclass(frozen=True)
class Predictions:
    """The columns of the file, and what is known of the dataset.

    words: names of the classes. input: shape of an example, (h, w, c) or (t, h, w, c).
    pictures: {place in the columns: PNG} of the most confident mistakes, worst first.
    """

    index: Int[np.ndarray, "n"]
    label: Int[np.ndarray, "n"]
    predicted: Int[np.ndarray, "n"]
    confidence: Float[np.ndarray, "n"]
    probability: Float[np.ndarray, "n"]
    dataset: str
    split: str
    words: Sequence[str]
    input: Sequence[int]
    pictures: Mapping[int, bytes]


def most_confident_mistakes(
    label: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], confidence: Float[np.ndarray, "n"]
) -> Int[np.ndarray, "m"]:
    """Places of the wrong predictions, the most confident first."""
    wrong = np.flatnonzero(label != predicted)
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def path_of(directory: Path, dataset: str, split: str, call: str) -> Path:
    return directory / f"predictions_{f'{dataset}_{split}'.replace('/', '_')}_{call or 'model'}.npz"


def write_predictions(
    path: Path, columns: Mapping[str, np.ndarray], batches: EvalBatches, about: Mapping[str, Any]
) -> None:
    """Writes the file at once: a killed process leaves the old one or the new one.

    Args:
      columns: `COLUMNS` of the split, which `batches` reads.
      about: "dataset", "split" and "words".
    """
    worst = most_confident_mistakes(*(columns[name] for name in ("label", "predicted", "confidence")))
    shape = np.shape(batches.example(int(columns["index"][0]))[0]["image"])
    arrays = {name: columns[name] for name in COLUMNS}
    for index in columns["index"][worst[:MISTAKES]]:
        picture = drawn(batches.example(int(index))[0]["image"])
        arrays[f"picture/{index}"] = np.frombuffer(picture, np.uint8)
    buffer = io.BytesIO()
    text = np.asarray(json.dumps({**about, "input": shape}))
    np.savez_compressed(buffer, about=text, **arrays)
    write_whole(path, buffer.getvalue())


def drawn(image: np.ndarray) -> bytes:
    """A model's input as a small PNG; of a clip, some of its frames."""
    image = np.asarray(image)
    while image.ndim > 4:  # several views
        image = image[0]
    if image.ndim == 4:
        image = mosaic(image, min(FRAMES, len(image)))
    return png(image, SIDE, enlarge=False)


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote.

    Raises:
      UserError: for a file that is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in COLUMNS}
            about = json.loads(str(file["about"]))
            found = {int(n.partition("/")[2]): file[n].tobytes() for n in file if n.startswith("picture/")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); delete it or evaluate again") from None
    places = {int(index): place for place, index in enumerate(columns["index"])}
    pictures = {places[index]: data for index, data in found.items()}
    return Predictions(**columns, **about, pictures=pictures)
