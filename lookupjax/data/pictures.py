"""Sets of unlabelled pictures for super-resolution: what `lookupjax.data.prepare` knows of each.

    div2k                                     folders DIV2K_train_HR and DIV2K_valid_HR
    set5, set14, b100, urban100, manga109     any folder with the high-resolution images

Only the high-resolution images are kept: the task shrinks them itself.
"""

import tensorflow_datasets as tfds
from etils import epath

from lookupjax.data.archives import list_files
from lookupjax.data.shards import Collection, Item, check_counts
from lookupjax.errors import UserError

FOLDERS = {"train": "DIV2K_train_HR", "validation": "DIV2K_valid_HR"}
COUNTS = {
    "div2k": {"train": 800, "validation": 100},
    "set5": {"test": 5},
    "set14": {"test": 14},
    "b100": {"test": 100},
    "urban100": {"test": 100},
    "manga109": {"test": 109},
}


def collect(name: str, source: str, *, partial: bool = False) -> Collection:
    """Lists the pictures of one set.

    Raises:
      UserError: for a missing folder, or other numbers of images than the official set has.
    """
    root = epath.Path(source)
    places = {split: root / FOLDERS[split] for split in FOLDERS} if name == "div2k" else {"test": root}
    for place in places.values():
        if not place.is_dir():
            raise UserError(f"{place} is not a directory; give the one that holds the images of {name}")
    splits = {
        split: [Item(file, where, 0) for file, where in list_files(place)] for split, place in places.items()
    }
    notes = list(check_counts(splits, COUNTS[name], partial))
    features = {"image": tfds.features.Image(encoding_format="png"), "file_name": tfds.features.Text()}
    return Collection("1.0.0", splits, features, lambda item: {}, notes=notes)
