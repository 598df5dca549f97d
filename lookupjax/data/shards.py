"""Writes examples with encoded images or videos as a TFDS dataset in ArrayRecord, without TensorFlow.

Everything lies in DATASET/VERSION.incomplete until all of it is there; then the directory is renamed, so
what has the final name is whole. Each shard is written beside its place, renamed, and noted in
notes/SHARD.json: after a kill at any moment the same command goes on with the shards that are missing.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from lookupjax.data.archives import Place, Reader
from lookupjax.errors import Unreadable, UserError
from lookupjax.files import write_whole

SHARD_EXAMPLES = 1252  # ImageNet-1K: 1,024 shards of about 140 MB
MAX_LEFT_OUT = 0.01  # share of unreadable items above which the source counts as damaged


class Item(NamedTuple):
    """One image or video and what is said of it."""

    name: str
    place: Place
    label: int
    extra: Any = None


def check_image(encoded: bytes) -> bytes:
    """The same bytes, if training will be able to decode them (OpenCV refuses truncated files too).

    Raises:
      Unreadable: otherwise.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    except cv2.error:
        image = None
    if image is None:
        raise Unreadable("not an image that can be decoded")
    return encoded


@dataclass
class Collection:
    """What a source holds: the items of each split and what is known of the whole.

    Attributes:
      features: TFDS features by name; `media` and "file_name" are filled from the item.
      fields: item -> the values of the other features.
      class_names: readable names in the order of the labels, or ().
      problems: lines of the source that were left out or doubtful, for people.
      media: what the items are, and the name of the feature that holds their bytes: "image" or "video".
      store: an item's bytes -> those that are stored; raises Unreadable for what is left out.
      recipe: what `store` does to the bytes; another one does not continue a beginning.
    """

    version: str
    splits: dict[str, list[Item]]
    features: dict[str, Any]
    fields: Callable[[Item], dict[str, Any]]
    class_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    media: str = "image"
    store: Callable[[bytes], bytes] = check_image
    recipe: str = ""


@dataclass(frozen=True, eq=False)
class Shard:
    split: str
    number: int
    count: int
    items: list[Item]

    def filename(self, dataset: str) -> str:
        return f"{dataset}-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"


def plan(splits: dict[str, list[Item]], shard_examples: int) -> list[Shard]:
    """The shards of every split: its items in a fixed random order, cut into equal parts."""
    shards = []
    for split, items in splits.items():
        count = max(1, -(-len(items) // shard_examples))
        order = np.random.Generator(np.random.Philox(0)).permutation(len(items))
        for number, part in enumerate(np.array_split(order, count)):
            shards.append(Shard(split, number, count, [items[i] for i in part]))
    return shards


def fingerprint(splits: dict[str, list[Item]], shard_examples: int, recipe: str = "") -> str:
    """Changes with the names, sizes and labels of a source, the size of the shards and what is stored."""
    digest = hashlib.sha256(f"{shard_examples}{recipe}".encode())
    for split, items in splits.items():
        digest.update(split.encode())
        for item in items:
            digest.update(f"{item.name} {item.place.size} {item.label} {item.extra}\n".encode())
    return digest.hexdigest()


class Writer:
    """Writes the shards of one dataset."""

    def __init__(self, dataset: str, collection: Collection, root: epath.Path, shard_examples: int):
        self.dataset, self.collection = dataset, collection
        self.final = root / dataset / collection.version
        self.staging = root / dataset / f"{collection.version}.incomplete"
        self.features = tfds.features.FeaturesDict(collection.features)
        self.read = Reader()
        self.shard_examples = shard_examples

    def write(self, threads: int, say: Callable[[str], None]) -> None:
        """Writes what is missing, in parallel, then the metadata, then gives the directory its name.

        Raises:
          UserError: when an earlier attempt was made from another source, or nothing can be read.
        """
        shards = plan(self.collection.splits, self.shard_examples)
        self._claim()
        done = {s for s in shards if self._note(s).exists()}
        total = sum(len(s.items) for s in shards)
        have = sum(len(s.items) for s in done)
        if done:
            say(f"going on: {len(done)} of {len(shards)} shards are there")
        missing = [s for s in shards if s not in done]
        began, told, written = time.monotonic(), time.monotonic(), 0
        with ThreadPoolExecutor(threads) as pool:
            futures = {pool.submit(self._write_shard, shard): shard for shard in missing}
            try:
                for future in as_completed(futures):
                    for line in future.result():
                        say(f"left out: {line}")
                    written += len(futures[future].items)
                    if time.monotonic() - told > 5 or have + written == total:
                        told = time.monotonic()
                        rate = written / (told - began)
                        left = (total - have - written) / rate
                        say(
                            f"{have + written:,} of {total:,} {self.collection.media}s, {rate:,.1f}/s, "
                            f"{left / 60:.1f} min left"
                        )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._finish(shards, say)

    def _claim(self) -> None:
        (self.staging / "notes").mkdir(parents=True, exist_ok=True)
        if (self.staging / "writing").exists():  # left by a kill
            (self.staging / "writing").rmtree()
        of = self.collection
        mark = self.staging / "source.txt"
        text = fingerprint(of.splits, self.shard_examples, of.recipe)
        if mark.exists() and mark.read_text() != text:
            raise UserError(
                f"{self.staging} holds the beginning of a preparation from other files or in other shards; "
                "delete it to start again, or give the same source"
            )
        _write_atomically(mark, text.encode())

    def _note(self, shard: Shard) -> epath.Path:
        return self.staging / "notes" / f"{shard.filename(self.dataset)}.json"

    def _write_shard(self, shard: Shard) -> list[str]:
        """Writes one shard; returns a line "NAME: REASON" for each unreadable item."""
        left_out, size = [], 0
        beside = None  # a remote shard is written here and copied
        if not _is_remote(self.staging):
            (self.staging / "writing").mkdir(exist_ok=True)
            beside = self.staging / "writing"
        with tempfile.TemporaryDirectory(dir=beside) as temporary:
            path = os.path.join(temporary, "shard")
            writer = ArrayRecordWriter(path, "group_size:1")
            for item in shard.items:
                try:
                    encoded = self.collection.store(self._bytes(item))
                except Unreadable as error:
                    left_out.append(f"{item.name}: {error}")
                    continue
                media = {self.collection.media: encoded, "file_name": item.name}
                example = media | self.collection.fields(item)
                record = self.features.serialize_example(self.features.encode_example(example))
                writer.write(record)
                size += len(record)
            writer.close()
            target = self.staging / shard.filename(self.dataset)
            if _is_remote(self.staging):
                epath.Path(path).copy(target, overwrite=True)
            else:
                os.replace(path, target)
        note = {"examples": len(shard.items) - len(left_out), "bytes": size, "left_out": left_out}
        _write_atomically(self._note(shard), json.dumps(note).encode())
        return left_out

    def _bytes(self, item: Item) -> bytes:
        try:
            return self.read(item.place)
        except OSError:
            if item.place.size >= 0:  # an archive: not this item's fault
                raise
            return b""

    def _finish(self, shards: list[Shard], say: Callable[[str], None]) -> None:
        notes = {shard: json.loads(self._note(shard).read_text()) for shard in shards}
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.staging, dataset_name=self.dataset, filetype_suffix="array_record"
        )
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[notes[s]["examples"] for s in shards if s.split == split],
                num_bytes=sum(notes[s]["bytes"] for s in shards if s.split == split),
                filename_template=template.replace(split=split),
            )
            for split in self.collection.splits
        ]
        left_out = sorted(name for note in notes.values() for name in note["left_out"])
        total = sum(len(shard.items) for shard in shards)
        if len(left_out) > max(10, MAX_LEFT_OUT * total):
            raise UserError(
                f"{len(left_out)} of {total} {self.collection.media}s cannot be read, such as {left_out[0]}; "
                f"the source is damaged: mend it and delete {self.staging}"
            )
        _write_atomically(self.staging / "unreadable.txt", "".join(f"{x}\n" for x in left_out).encode())
        if self.collection.problems:
            lines = "".join(f"{line}\n" for line in self.collection.problems)
            _write_atomically(self.staging / "problems.txt", lines.encode())
        if self.collection.class_names:
            names = "".join(f"{name}\n" for name in self.collection.class_names)
            _write_atomically(self.staging / "class_names.txt", names.encode())
        self._write_metadata(infos)
        self.staging.rename(self.final)
        for rest in ("notes", "writing"):
            if (self.final / rest).exists():
                (self.final / rest).rmtree()
        counts = ", ".join(f"{info.name} {info.num_examples:,}" for info in infos)
        say(f"{self.dataset} is ready in {self.final}: {counts}")
        if left_out:
            say(f"{len(left_out)} {self.collection.media}s left out: {self.final}/unreadable.txt")

    def _write_metadata(self, infos: list[tfds.core.SplitInfo]) -> None:
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=self.dataset,
            version=tfds.core.Version(self.collection.version),
            data_dir=os.fspath(self.staging),
            module_name="",
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=self.features,
            description="\n".join([f"Prepared by lookupjax from {self.dataset}.", *self.collection.notes]),
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        info.set_splits(tfds.core.splits.SplitDict(infos))
        info.write_to_directory(self.staging)


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _write_atomically(path: epath.Path, content: bytes) -> None:
    if _is_remote(path):
        path.write_bytes(content)
    else:
        write_whole(Path(path), content)


def check_counts(
    splits: dict[str, list[Item]], expected: dict[str, int], partial: bool, what: str = "image"
) -> Iterable[str]:
    """Compares with the official numbers; yields notes about what is accepted nevertheless.

    Raises:
      UserError: when a split is empty, or differs from the official number and `partial` is not set.
    """
    for split, items in splits.items():
        if not items:
            raise UserError(f"the source holds no {what} of the split {split!r}")
        official = expected.get(split)
        if official is not None and len(items) != official:
            text = f"{split}: {len(items):,} {what}s, {official:,} in the official set"
            if not partial:
                raise UserError(f"{text}; complete the source, or accept it with --partial")
            yield text
