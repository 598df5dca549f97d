"""Orbax checkpoints of (model, optimizer, data position), written in the background.

A checkpoint is three items: "model" (parameters, statistics, EMA, step), "optimizer", and "data" (the
iterator's position as JSON). Orbax writes into a temporary directory and renames it when complete, so a
killed save leaves the previous checkpoint as the last one.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lookupjax.errors import UserError
from lookupjax.training.state import TrainState

log = logging.getLogger(__name__)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree`, to be placed by `shardings`."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


class Checkpoints:
    """The checkpoints of one work directory; the newest `keep` stay."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState, data: dict) -> None:
        """Starts writing; returns once the arrays are copied. A failure surfaces at the next call.

        Raises:
          UserError: when the disk refuses.
        """
        item = ocp.args.StandardSave
        args = ocp.args.Composite(
            model=item(state.model_part()), optimizer=item(state.opt_state), data=ocp.args.JsonSave(data)
        )
        self._guarded(lambda: self.manager.save(step, args=args, force=True))

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          UserError: when it failed.
        """
        self._guarded(self.manager.wait_until_finished)

    def _guarded(self, write) -> None:
        try:
            write()
        except Exception as error:
            raise UserError(
                f"cannot write a checkpoint to {self.directory}: {_first_line(error)}; free space or fix "
                f"permissions and start again: the run resumes at step {max(self.steps, default=0)}"
            ) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
        """(state, data position) of the newest checkpoint that can be read, or None if there is none.

        Raises:
          UserError: when there are checkpoints but none can be read.
        """
        item = ocp.args.StandardRestore
        args = ocp.args.Composite(
            model=item(abstract.model_part()),
            optimizer=item(abstract.opt_state),
            data=ocp.args.JsonRestore(),
        )
        step, found = self._newest(args)
        if found is None:
            return None
        self._set_aside([later for later in self.steps if later > step])
        return TrainState(**found["model"], opt_state=found["optimizer"]), found["data"]

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again and nothing is deleted."""
        if jax.process_index() == 0:
            for step in steps:
                target = self.directory.parent / "damaged_checkpoints" / str(step)
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                (self.directory / str(step)).rename(target)
                log.warning("moved the damaged checkpoint %d to %s", step, target)
        multihost_utils.sync_global_devices("set aside damaged checkpoints")
        self.manager.reload()

    def restore_model(self, abstract: dict[str, Any]) -> dict[str, Any] | None:
        """Only the "model" item: what evaluation and prediction need."""
        _, found = self._newest(ocp.args.Composite(model=ocp.args.StandardRestore(abstract)))
        return None if found is None else found["model"]

    def _newest(self, args: ocp.args.Composite) -> tuple[int, Any]:
        """(step, items) of the newest readable checkpoint; (0, None) when there is none at all."""
        for step in reversed(self.steps):
            try:
                return step, self.manager.restore(step, args=args)
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                log.warning(
                    "checkpoint %d cannot be used, trying the one before: %s", step, _first_line(error)
                )
        if self.steps:
            raise UserError(
                f"none of the checkpoints {self.steps} in {self.directory} can be read by this model "
                "(reasons above); move them away to start from scratch, or start in another work directory"
            )
        return 0, None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
