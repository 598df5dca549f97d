"""Datasets by name, as random-access sources of examples with encoded images.

`BUILDERS` lists ours: embedded ones are prepared on first use, the others by `lookupjax.data.prepare`.
Any other name is looked up among TFDS datasets already prepared (as ArrayRecord) in the data directory.
"""

import importlib
import os
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import tensorflow_datasets as tfds
from etils import epath

from lookupjax.errors import UserError, nearest

BUILDERS = {"digits": "lookupjax.data.builders.digits:Digits"}
EMBEDDED = ("digits",)  # made from what is installed, within a second


@runtime_checkable
class Source(Protocol):
    """What the loader reads from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class DatasetInfo:
    """What a config needs to know of a dataset; 0 classes where it has no class "label"."""

    num_classes: int
    class_names: tuple[str, ...]
    splits: dict[str, int]


def data_dir(configured: str = "") -> epath.Path:
    """The directory of prepared datasets: as configured, else $LOOKUPJAX_DATA, else in the user's cache."""
    default = os.environ.get("LOOKUPJAX_DATA") or epath.Path("~/.cache/lookupjax/data").expanduser()
    return epath.Path(configured or default)


def make_builder(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """The TFDS builder of one of our datasets, prepared or not."""
    module, _, attribute = BUILDERS[name].partition(":")
    builder = getattr(importlib.import_module(module), attribute)
    return builder(data_dir=data_dir(directory), file_format="array_record")


def prepare(name: str, directory: str = "") -> tfds.core.DatasetBuilder:
    """Makes the dataset unless it is there. TFDS writes beside it and renames: no half dataset is seen.

    Raises:
      UserError: when the directory cannot be written.
    """
    builder = make_builder(name, directory)
    try:
        builder.download_and_prepare()
    except OSError as error:
        if not builder.is_prepared():  # else another process has just finished the same work
            raise UserError(
                f"cannot write {name} to {data_dir(directory)}: {error.strerror or error}"
            ) from error
    return builder


def _prepared(name: str, directory: str) -> tfds.core.DatasetBuilder:
    if name in EMBEDDED:
        return prepare(name, directory)
    root = data_dir(directory)
    if name in BUILDERS:
        builder = make_builder(name, directory)
        if builder.is_prepared():
            return builder
    elif (root / name).exists():
        return tfds.builder_from_directories(sorted((root / name).glob("*.*.*")))
    known = sorted(
        {*BUILDERS, *(p.name for p in root.glob("*") if p.is_dir())} if root.exists() else BUILDERS
    )
    if name not in BUILDERS:
        raise UserError(f"there is no dataset {name!r} in {root}{nearest(name, known)}; there are {known}")
    raise UserError(
        f"the dataset {name!r} is not in {root}; prepare it with "
        f"`python -m lookupjax.data.prepare {name} --data_dir={root} --source=DIR`"
    )


def dataset_info(name: str, directory: str = "") -> DatasetInfo:
    """Classes and split sizes.

    Raises:
      UserError: when there is no such dataset.
    """
    info = _prepared(name, directory).info
    label = dict(info.features.items()).get("label")
    splits = {split: n.num_examples for split, n in info.splits.items()}
    if not isinstance(label, tfds.features.ClassLabel):
        return DatasetInfo(0, (), splits)
    return DatasetInfo(label.num_classes, tuple(label.names), splits)


def open_source(name: str, split: str, directory: str = "") -> Source:
    """The examples of a split: dicts with the encoded "image" (bytes), "label" (int) and what else there is.

    Raises:
      UserError: when there is no such dataset or split.
    """
    builder = _prepared(name, directory)
    splits = list(builder.info.splits)
    if split.partition("[")[0] not in splits:
        raise UserError(f"{name} has no split {split!r}{nearest(split, splits)}; it has {splits}")
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in builder.info.features else None
    return builder.as_data_source(split=split, decoders=decoders)
