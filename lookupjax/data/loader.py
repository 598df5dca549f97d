"""Batches for training and evaluation, read by Grain.

Training: example i of the endless shuffled sequence depends on (seed, i) alone, augmentation included, and
batch s holds examples s B .. (s + 1) B - 1, of which each process takes its contiguous share. So the
iterator's position is the step, whatever the number of processes, threads, workers or restarts. Grain reads
ahead; it is given whole batches to make, because its bookkeeping costs a fifth of a millisecond per element.
"""

import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from lookupjax.data.sources import Source, open_source
from lookupjax.data.transforms import apply_example, build_transforms, decode_image, split_normalize
from lookupjax.errors import Unreadable, UserError

Batch = dict[str, np.ndarray]
NARROW = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}
LOOK_AHEAD = 100  # records tried in place of an unreadable one

cv2.setNumThreads(0)  # the loader's own threads and workers use the cores
log = logging.getLogger(__name__)


class Decoded:
    """A source with its images decoded; with `cache`, each of them only once.

    A record that cannot be read or decoded is logged with its key, counted, and replaced by the next
    readable one of the split, so that the sequence of examples stays a function of the index. When more
    than `max_corrupt` of all records have turned out unreadable, that is an error.

    With `tokens`, a .npy file with a row for each record, "tokens" of that row stand in place of "image".
    """

    def __init__(self, source: Source, config: ConfigDict, tokens: str = ""):
        self.source, self.channels, self.max_corrupt = source, config.channels, config.max_corrupt
        self.tokens = tokens
        self.cache: dict[int, dict[str, Any]] | None = {} if config.cache else None
        self.corrupt: set[int] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.readable(index)[0]

    def readable(
        self, index: int, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> tuple[dict[str, Any], bool]:
        """(change(the example at `index` or the one that stands for it), whether it is the one asked for).

        `change` does the transforms; it raises Unreadable for what only they can find out (a video is decoded
        when its frames have been chosen).
        """
        for ahead in range(min(LOOK_AHEAD, len(self))):
            at = (index + ahead) % len(self)
            example = self.read(at)
            if example is None:
                continue
            try:
                return (example if change is None else change(example)), ahead == 0
            except Unreadable as error:
                self._count(at, _text(example.get("file_name", at)), error)
        raise UserError(f"records {index} to {index + LOOK_AHEAD} of the dataset are all unreadable")

    def read(self, index: int) -> dict[str, Any] | None:
        """The decoded example, or None when it is corrupt."""
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        if index in self.corrupt:
            return None
        key: Any = index
        try:
            example = self.source[index]
            key = _text(example.get("file_name", index))
            decoded = dict(example)
            if self.tokens:
                decoded = {name: value for name, value in example.items() if name != "image"}
                decoded["tokens"] = stored_tokens(self.tokens, index)
            elif "image" in example:
                decoded["image"] = decode_image(example["image"], self.channels)
        except (ValueError, RuntimeError) as error:
            self._count(index, key, error)
            return None
        if self.cache is not None:
            self.cache[index] = decoded
        return decoded

    def _count(self, index: int, key: Any, error: Exception) -> None:
        self.corrupt.add(index)
        count, total = len(self.corrupt), len(self)
        log.warning("record %s is corrupt and left out (%s); %d of %d so far", key, error, count, total)
        if count > self.max_corrupt * total:
            raise UserError(
                f"{count} of {total} records are corrupt, the last one {key}: more than "
                f"config.data.max_corrupt={self.max_corrupt}; prepare the dataset again or raise the limit"
            )


@functools.lru_cache(maxsize=2)
def _rows(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def stored_tokens(path: str, index: int) -> np.ndarray:
    """Row `index` of a .npy file; the file stays open.

    Raises:
      ValueError: for a row that is not finite: its image was corrupt.
    """
    row = np.array(_rows(path)[index])
    if not np.isfinite(row.flat[0]):
        raise ValueError("its image could not be read")
    return row


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _decoded(config: ConfigDict, split: str, tokens: str = "") -> Decoded:
    return Decoded(open_source(config.name, split, config.dir), config, tokens)


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be split over {process_count} processes")
    return batch_size // process_count


def stack(examples: list[dict[str, Any]], keys: tuple[str, ...] = ()) -> Batch:
    """A batch of examples: of "image", "label" and `keys`, or of every number and array (no texts).

    Integers become int32, floats float32.

    Raises:
      UserError: when a key is missing, or its arrays differ in size.
    """
    batch = {}
    for key in dict.fromkeys(("image", "tokens", "label", *keys)) if keys else examples[0]:
        if keys and key not in examples[0]:
            if key in keys:
                raise UserError(
                    f"examples have no {key!r} (config.data.batch_keys); they have {sorted(examples[0])}"
                )
            continue
        values = [np.asarray(example[key]) for example in examples]
        if values[0].dtype.kind not in "biuf":
            if key in keys:
                raise UserError(
                    f"{key!r} (config.data.batch_keys) is text; turn it into numbers with a transform"
                )
            continue
        shapes = sorted({value.shape for value in values})
        if len(shapes) > 1 and key == "image":
            raise UserError(
                f"images of different sizes in one batch, such as {shapes[:2]}; add a transform, "
                'such as {"name": "resize", "size": (224, 224)}'
            )
        if len(shapes) > 1:
            raise UserError(
                f"{key!r} has different sizes in one batch, such as {shapes[:2]}; pad it with a transform or "
                "leave it out of config.data.batch_keys"
            )
        batch[key] = np.stack(values).astype(NARROW.get(values[0].dtype, values[0].dtype), copy=False)
    return batch


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of an epoch's n examples (uint32: 56 MB for ImageNet-21K)."""
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return random.permutation(np.arange(n, dtype=np.uint32))


@dataclass(frozen=True)
class TrainBatches:
    """batches(s): this process's share of batch s. Picklable: it is sent to the worker processes.

    Batch s takes the next B / repeats examples of the endless shuffled sequence, each `repeats` times at
    places B / repeats apart (repeated augmentation, arXiv 1901.09335).
    """

    source: Decoded
    transforms: list[Callable]
    keys: tuple[str, ...]
    seed: int
    batch_size: int
    repeats: int
    places: range  # of this process in a batch

    def __call__(self, number: int) -> Batch:
        return stack([self.example(number, place) for place in self.places], self.keys)

    def choose(self, number: int, place: int) -> int:
        """Which example of the source stands at `place` of batch `number`."""
        distinct = self.batch_size // self.repeats
        epoch, index = divmod(number * distinct + place % distinct, len(self.source))
        return int(permutation(self.seed, epoch, len(self.source))[index])

    def example(self, number: int, place: int) -> dict[str, Any]:
        chosen = self.choose(number, place)
        position = number * self.batch_size + place

        def change(example: dict[str, Any]) -> dict[str, Any]:
            return apply_example(self.transforms, example, np.random.default_rng([self.seed, position]))

        return self.source.readable(chosen, change)[0]


@dataclass(frozen=True)
class ClassBatches(TrainBatches):
    """Batches of B / k classes with k images each, for losses that compare within a batch.

    An epoch is a random order of the classes, cut into batches; what is left at its end waits for another.
    The images of a class are drawn without repetition as far as it has k. All depends on (seed, batch) alone.
    """

    members: tuple[np.ndarray, ...]  # the examples of each class
    per_class: int

    def choose(self, number: int, place: int) -> int:
        group, image = divmod(place, self.per_class)
        groups = self.batch_size // self.per_class
        epoch, index = divmod(number, len(self.members) // groups)
        chosen = permutation(self.seed, epoch, len(self.members))[index * groups + group]
        members = self.members[int(chosen)]
        drawn = np.random.default_rng([self.seed, number, group]).permutation(len(members))
        return int(members[drawn[image % len(members)]])


def class_members(source: Source) -> tuple[np.ndarray, ...]:
    """The examples of each class in turn; a source with `class_numbers` tells without reading its images."""
    labels = getattr(source, "class_numbers", None)
    labels = np.asarray([source[i]["label"] for i in range(len(source))] if labels is None else labels)
    return tuple(np.flatnonzero(labels == value) for value in np.unique(labels))


class TrainIterator:
    """Iterates over batches from a position on, in threads or, with `workers`, in processes."""

    def __init__(self, batches: TrainBatches, config: ConfigDict):
        self.batches, self.workers = batches, config.workers
        ahead = max(config.threads, config.prefetch // len(batches.places))
        self.options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead)
        self.position = 0
        self.iterator: Iterator[Batch] | None = None

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Batch:
        if self.iterator is None:
            numbers = grain.MapDataset.range(self.position, sys.maxsize)
            dataset = numbers.map(self.batches).to_iter_dataset(self.options)
            if self.workers:
                if not flags.FLAGS.is_parsed():  # Grain's processes read absl's flags
                    flags.FLAGS.mark_as_parsed()
                dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.workers))
            self.iterator = iter(dataset)
        self.position += 1
        return next(self.iterator)

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position, self.iterator = state["next_index"], None


def train_iterator(
    config: ConfigDict,
    batch_size: int,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    tokens: str = "",
) -> TrainIterator:
    """An endless iterator of this process's {"image": (b, h, w, c), "label": (b,) int32, ...}.

    A Normalize at the end of `config.train_transforms` is left to the training step: images are uint8 then.

    `get_state()` and `set_state(...)` give and set its position.

    Args:
      tokens: see `Decoded`; of the transforms only those of whole examples are left then.
    """
    local = _local_size(batch_size, process_count)
    if batch_size % config.repeats:
        raise UserError(
            f"a batch of {batch_size} cannot hold every example {config.repeats} times (data.repeats)"
        )
    if config.per_class and (config.repeats > 1 or batch_size % config.per_class):
        raise UserError(
            f"data.per_class={config.per_class} must divide the batch of {batch_size}, with data.repeats=1"
        )
    first, source = process_index * local, _decoded(config, config.train_split, tokens)
    transforms = split_normalize(build_transforms(config.train_transforms))[0]
    given = dict(
        source=source,
        transforms=[t for t in transforms if not tokens or getattr(t, "whole", False)],
        keys=tuple(config.batch_keys),
        seed=seed,
        batch_size=batch_size,
        repeats=config.repeats,
        places=range(first, first + local),
    )
    if not config.per_class:
        return TrainIterator(TrainBatches(**given), config)
    members, groups = class_members(source.source), batch_size // config.per_class
    if len(members) < groups:
        raise UserError(
            f"a batch of {groups} classes (data.per_class) needs as many; there are {len(members)}"
        )
    return TrainIterator(ClassBatches(**given, members=members, per_class=config.per_class), config)


class EvalBatches:
    """The examples of a split once, in order, in batches with a "mask": 1 for real examples, 0 for padding
    and for records that are corrupt.

    Every process gets the same number of batches of the same size. Can be iterated any number of times.
    """

    def __init__(
        self,
        config: ConfigDict,
        split: str,
        batch_size: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.source = _decoded(config, split)
        self.transforms, self.keys = build_transforms(config.eval_transforms), tuple(config.batch_keys)
        self.local = _local_size(batch_size, process_count)
        self.batch_size, self.process_index = batch_size, process_index
        self.threads = config.threads
        self.kept: list[Batch] | None = [] if config.cache else None

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.kept:
            yield from self.kept
            return
        dataset = grain.MapDataset.range(len(self)).map(self.batch)
        for batch in dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads)
        ):
            if self.kept is not None:
                self.kept.append(batch)
            yield batch

    def example(self, index: int) -> tuple[dict[str, Any], bool]:
        """(the example as the model takes it, whether it is this one and not one in its place)."""
        return self.source.readable(index, functools.partial(apply_example, self.transforms))

    def batch(self, number: int) -> Batch:
        """This process's share of batch `number`."""
        first = number * self.batch_size + self.process_index * self.local
        last = len(self.source) - 1
        examples, mask = [], []
        for index in range(first, first + self.local):
            example, found = self.example(min(index, last))
            examples.append(example)
            mask.append(found and index <= last)
        return stack(examples, self.keys) | {"mask": np.asarray(mask, np.float32)}
