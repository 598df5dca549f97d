"""Batches for training and evaluation, read by Grain.

Training: example i of the endless shuffled sequence depends on (seed, i) alone, augmentation included, and
batch s holds examples s B .. (s + 1) B - 1, of which each process takes its contiguous share. So the
iterator's position is the step, whatever the number of processes, threads or restarts.
"""

import math
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from lookupjax.data.sources import Source, open_source
from lookupjax.data.transforms import apply, build_transforms, decode_image
from lookupjax.errors import UserError

Batch = dict[str, np.ndarray]


class Decoded:
    """A source with its images decoded; with `cache`, each of them only once."""

    def __init__(self, source: Source, channels: int, cache: bool):
        self.source, self.channels = source, channels
        self.cache: dict[int, dict[str, Any]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        example = self.source[index]
        try:
            image = decode_image(example["image"], self.channels)
        except ValueError as error:
            raise UserError(f"example {index} of the dataset is {error}") from None
        decoded = {"image": image, "label": np.int32(example["label"])}
        if self.cache is not None:
            self.cache[index] = decoded
        return decoded


def _decoded(config: ConfigDict, split: str) -> Decoded:
    return Decoded(open_source(config.name, split, config.dir), config.channels, config.cache)


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be split over {process_count} processes")
    return batch_size // process_count


def stack(examples: list[dict[str, Any]]) -> Batch:
    """A batch of examples.

    Raises:
      UserError: when their images differ in size.
    """
    shapes = {example["image"].shape for example in examples}
    if len(shapes) > 1:
        raise UserError(
            f"images of different sizes in one batch, such as {sorted(shapes)[:2]}; add a transform, "
            'such as {"name": "resize", "size": (224, 224)}'
        )
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def train_iterator(
    config: ConfigDict, batch_size: int, seed: int, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of this process's {"image": (b, h, w, c) float32, "label": (b,) int32}.

    `get_state()` and `set_state(...)` give and set its position.
    """
    local = _local_size(batch_size, process_count)
    transforms = build_transforms(config.train_transforms)

    def augment(example: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        return example | {"image": apply(transforms, example["image"], random)}

    examples = grain.MapDataset.source(_decoded(config, config.train_split)).seed(seed)
    batches = examples.shuffle().repeat().random_map(augment).batch(local, batch_fn=stack)
    options = grain.ReadOptions(
        num_threads=config.threads, prefetch_buffer_size=max(config.threads, config.prefetch // local)
    )
    return iter(batches[process_index::process_count].to_iter_dataset(options))


class EvalBatches:
    """The examples of a split once, in order, in batches with a "mask": 1 for real examples, 0 for padding.

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
        self.transforms = build_transforms(config.eval_transforms)
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

    def batch(self, number: int) -> Batch:
        """This process's share of batch `number`."""
        first = number * self.batch_size + self.process_index * self.local
        indices = range(first, first + self.local)
        last = len(self.source) - 1
        examples = [dict(self.source[min(i, last)]) for i in indices]
        for example in examples:
            example["image"] = apply(self.transforms, example["image"])
        mask = np.asarray([i <= last for i in indices], np.float32)
        return stack(examples) | {"mask": mask}
