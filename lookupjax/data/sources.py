"""Datasets by name, as random-access sources of examples with encoded images.

`BUILDERS` lists ours: embedded ones are prepared on first use, the others by `lookupjax.data.prepare`.
"folder" is a folder per class or a CSV, read as it is (`lookupjax.data.folder`), "reid" the official folders
of re-identification (`lookupjax.data.reid`). Any other name is looked up among TFDS datasets already prepared
(as ArrayRecord) in the data directory.
"""

import importlib
import os
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from lookupjax.data.folder import folder_source, read_folder
from lookupjax.data.reid import read_reid
from lookupjax.errors import UserError, nearest

BUILDERS = {
    "digits": "lookupjax.data.builders.digits:Digits",
    "coloured_digits": "lookupjax.data.builders.coloured_digits:ColouredDigits",
    "captioned_digits": "lookupjax.data.builders.captioned_digits:CaptionedDigits",
    "photos": "lookupjax.data.builders.photos:Photos",
    "moving_digits": "lookupjax.data.builders.moving_digits:MovingDigits",
    "lesions": "lookupjax.data.builders.lesions:Lesions",
}
VERSION = re.compile(r"\d+\.\d+\.\d+")
# made from what is installed, in seconds
EMBEDDED = ("digits", "coloured_digits", "captioned_digits", "photos", "moving_digits", "lesions")


@runtime_checkable
class Source(Protocol):
    """What the loader reads from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class DatasetInfo:
    """What a config needs to know of a dataset; 0 classes where it has no class "label".

    `class_names` tell classes apart (ImageNet: WordNet ids), `words` are for people and may be the same.
    """

    num_classes: int
    class_names: tuple[str, ...]
    splits: dict[str, int]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A split whose feature `key` stays the bytes it was stored as.

    Labels and texts are read here, other features decoded by TFDS, whose general way costs a twentieth of
    decoding the image for a label, more for encoded bytes, and loses zeros at their end.
    """

    raw: Source
    key: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    rest: tfds.features.FeaturesDict

    @classmethod
    def of(cls, raw: Source, key: str, features: tfds.features.FeaturesDict) -> "Encoded":
        """The split whose serialised examples are `raw`."""
        rest = {name: feature for name, feature in features.items() if name != key}
        labels = tuple(n for n, feature in rest.items() if type(feature) is tfds.features.ClassLabel)
        texts = tuple(n for n, feature in rest.items() if type(feature) is tfds.features.Text)
        rest = {name: rest[name] for name in rest if name not in (*labels, *texts)}
        return cls(raw, key, labels, texts, tfds.features.FeaturesDict(rest))

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = tf_example_pb2.Example.FromString(self.raw[index])
        features = example.features.feature
        read: dict[str, Any] = {name: np.int64(features[name].int64_list.value[0]) for name in self.labels}
        read |= {name: features[name].bytes_list.value[0] for name in (self.key, *self.texts)}
        if self.rest:
            for name in read:
                del features[name]
            read |= self.rest.deserialize_example_np(example.SerializeToString())
        return read


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


def is_prepared(directory: epath.Path) -> bool:
    """Whether a version's directory is whole: TFDS and we write its dataset_info.json last."""
    return (directory / "dataset_info.json").exists()


def _prepared(name: str, directory: str) -> tfds.core.DatasetBuilder:
    if name in EMBEDDED:
        return prepare(name, directory)
    root = data_dir(directory)
    versions = [p for p in (root / name).glob("*") if VERSION.fullmatch(p.name)]
    whole = [p for p in versions if is_prepared(p)]
    if whole:
        return tfds.builder_from_directory(max(whole, key=lambda p: [int(x) for x in p.name.split(".")]))
    how = f"`python -m lookupjax.data.prepare {name} --data_dir={root} --source=DIR`"
    if versions or list((root / name).glob("*.incomplete")):
        raise UserError(f"the preparation of {name!r} in {root} is not finished; go on with {how}")
    known = sorted({*BUILDERS, *(p.name for p in root.glob("*") if p.is_dir())})
    raise UserError(
        f"there is no dataset {name!r} in {root}{nearest(name, known)};"
        f" there are {known}; prepare it with {how}"
    )


def dataset_info(name: str, directory: str = "") -> DatasetInfo:
    """Classes and split sizes.

    Raises:
      UserError: when there is no such dataset.
    """
    if name == "folder":
        folder = read_folder(directory)
        splits = {split: len(items) for split, items in folder.splits.items()}
        return DatasetInfo(len(folder.classes), folder.classes, splits, folder.classes)
    if name == "reid":
        sources = read_reid(directory)
        names = tuple(map(str, range(len(set(sources["train"].class_numbers)))))
        return DatasetInfo(len(names), names, {s: len(source) for s, source in sources.items()}, names)
    builder = _prepared(name, directory)
    info = builder.info
    label = dict(info.features.items()).get("label")
    splits = {split: n.num_examples for split, n in info.splits.items()}
    if not isinstance(label, tfds.features.ClassLabel):
        return DatasetInfo(0, (), splits)
    names = builder.data_path / "class_names.txt"  # readable ones, where `prepare` found them
    words = names.read_text().splitlines() if names.exists() else label.names
    return DatasetInfo(label.num_classes, tuple(label.names), splits, tuple(words))


def open_source(name: str, split: str, directory: str = "") -> Source:
    """The examples of a split: dicts with the encoded "image" or "video", "label" (int) and whatever else.

    Raises:
      UserError: when there is no such dataset or split.
    """
    if name == "folder":
        return folder_source(directory, split)
    if name == "reid":
        sources = read_reid(directory)
        if split not in sources:
            raise UserError(f"{name} has no split {split!r}{nearest(split, sources)}; it has {list(sources)}")
        return sources[split]
    builder = _prepared(name, directory)
    splits = list(builder.info.splits)
    for part in split.split("+"):  # "train+restval"
        if part.partition("[")[0] not in splits:
            raise UserError(f"{name} has no split {part!r}{nearest(part, splits)}; it has {splits}")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{builder.data_path} holds {builder.info.file_format.value} files, which have no random access; "
            "prepare the dataset as ArrayRecord (TFDS: file_format='array_record')"
        )
    key = next((key for key in ("video", "image") if key in builder.info.features), "")
    if not key:
        return builder.as_data_source(split=split)
    raw = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return Encoded.of(raw, key, builder.info.features)
