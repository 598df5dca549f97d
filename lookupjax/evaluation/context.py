"""What evaluators are built from: the model's structure, the task, the data, and one compiled function each.

An evaluator never sees a batch: it asks for whole-split arrays of whatever it needs of the outputs. They
come back on every process, in the order of the split, without the padding of the last batch.
"""

import copy
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lookupjax.config import set_key
from lookupjax.data.loader import EvalBatches
from lookupjax.data.sources import DatasetInfo, dataset_info
from lookupjax.grids import format_grid
from lookupjax.tasks.base import Batch, Task
from lookupjax.training.sharding import Layout, batch_share, check_batch_size, global_batch
from lookupjax.training.state import merge_model

Call = tuple[tuple[str, Any], ...]
PerExample = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], dict[str, jax.Array]]

IN_FLIGHT = 3  # batches dispatched ahead of the one whose values are read


def call_name(call: Call) -> str:
    """How a call variant is named in results: its compressed grid, or "" for the model's own call."""
    return " ".join(format_grid(v) if isinstance(v, tuple) else f"{k}={v}" for k, v in call)


class OfModel:
    """Base of per-example functions that need the model itself, such as an attack on it. Hashable."""

    def of_model(self, task: Task, model: nnx.Module, batch: Batch, **call: Any) -> dict[str, jax.Array]:
        """Arrays whose first axis is the batch."""
        raise NotImplementedError


@dataclass(eq=False)
class Context:
    """Everything an evaluator may use.

    Args:
      data: `config.data` of the training; an evaluator can change keys of it for itself.
      calls: variants of the model's call (LookupViT: compressed grids); one program each.
      directory: where pictures go, one subdirectory per evaluator; None: no pictures.

    Raises:
      UserError: when the batch size does not fit the mesh.
    """

    graphdef: nnx.GraphDef
    task: Task
    mesh: Mesh
    data: ConfigDict
    batch_size: int
    calls: tuple[Call, ...] = ((),)
    directory: Path | None = None
    _batches: dict[str, EvalBatches] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_batch_size(self.batch_size, self.mesh, "config.eval_batch_size")
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        # program(fn, params, stats, batch, call): compiled once per fn, call and shape of the batch
        self.program = jax.jit(self._run, static_argnums=(0, 4), out_shardings=everywhere)

    def named(self, name: str) -> "Context":
        """The same context (compiled programs and read data are shared) with a directory of its own."""
        mine = copy.copy(self)
        mine.directory = self.directory / name if self.directory else None
        return mine

    def drawing_directory(self) -> Path | None:
        """The directory for pictures, which then exists; None where this process draws none."""
        if self.directory is None or jax.process_index() != 0:
            return None
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory

    def _run(
        self, fn: PerExample | OfModel, params: Any, stats: Any, batch: dict, call: Call
    ) -> dict[str, jax.Array]:
        model = merge_model(self.graphdef, Layout(self.mesh).gather(params), stats)
        if isinstance(fn, OfModel):
            values = fn.of_model(self.task, model, batch, **dict(call))
        else:
            values = fn(self.task.predict(model, batch, **dict(call)), batch)
        return values | {"mask": batch["mask"]}

    def data_config(self, changes: Mapping[str, Any] | None = None) -> ConfigDict:
        """`data` with some keys changed.

        Raises:
          UserError: for a key that does not exist, or a value of another type.
        """
        config = self.data.copy_and_resolve_references()
        for key, value in (changes or {}).items():
            set_key(config, key, value, "data.")
        return config

    def batches(self, split: str = "", changes: Mapping[str, Any] | None = None) -> EvalBatches:
        """The batches of a split ("": `data.eval_split`); evaluators of the same data share them."""
        config = self.data_config(changes)
        key = json.dumps([split, config.to_dict()], sort_keys=True, default=str)
        if key not in self._batches:
            index, count = batch_share(self.mesh)
            self._batches[key] = EvalBatches(
                config,
                split or config.eval_split,
                self.batch_size,
                process_index=index,
                process_count=count,
            )
        return self._batches[key]

    def input_size(self) -> tuple[int, ...]:
        """(height, width) or (frames, height, width) of the inputs."""
        return self.batches().batch(0)["image"].shape[1:-1]

    def info(self, changes: Mapping[str, Any] | None = None) -> DatasetInfo:
        """Classes and splits of the dataset."""
        config = self.data_config(changes)
        return dataset_info(config.name, config.dir)

    def stream(
        self, fn: PerExample | OfModel, params: Any, stats: Any, batches: EvalBatches, call: Call
    ) -> Iterator[dict[str, np.ndarray]]:
        """`fn(outputs, batch)` of each batch, real examples only, and their "index" in the split."""
        pending: deque[tuple[int, dict[str, jax.Array]]] = deque()

        def real_examples(number: int, values: dict[str, jax.Array]) -> dict[str, np.ndarray]:
            arrays = jax.device_get(values)
            real = np.flatnonzero(arrays.pop("mask") > 0)
            index = number * batches.batch_size + real
            return {name: array[real] for name, array in arrays.items()} | {"index": index}

        for number, batch in enumerate(batches):
            values = self.program(fn, params, stats, global_batch(batch, self.mesh), call)
            jax.tree.map(lambda x: x.copy_to_host_async(), values)
            pending.append((number, values))
            if len(pending) > IN_FLIGHT:
                yield real_examples(*pending.popleft())
        while pending:
            yield real_examples(*pending.popleft())

    def collect(
        self,
        fn: PerExample | OfModel,
        params: Any,
        stats: Any,
        batches: EvalBatches,
        call: Call = (),
        index: bool = False,
    ) -> dict[str, np.ndarray]:
        """`fn(outputs, batch)` of every example of the split, in its order.

        Args:
          fn: returns arrays whose first axis is the batch. It is traced; evaluators share the compiled
            program when they pass the same function.
          index: also give each example's "index" in the split, from which corrupt records are missing.
        """
        rows = list(self.stream(fn, params, stats, batches, call))
        names = [name for name in rows[0] if index or name != "index"]
        return {name: np.concatenate([row[name] for row in rows]) for name in names}
