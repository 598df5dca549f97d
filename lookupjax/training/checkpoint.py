"""Orbax checkpoints of (model, optimizer, data position), written in the background.

A checkpoint is three items: "model" (parameters, statistics, EMA, step), "optimizer", and "data" (the
iterator's position as JSON). Orbax writes into a temporary directory and renames it when complete, so a
killed save leaves the previous checkpoint as the last one. The arrays are global: they can be restored
on any mesh and with any number of processes.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from lookupjax.errors import UserError, nearest
from lookupjax.training import distributed
from lookupjax.training.state import TrainState

log = logging.getLogger(__name__)


BEST = "best"  # under which orbax stores the figure that `checkpoint.best` names
WORST = {"max": -math.inf, "min": math.inf}


class Checkpoints:
    """The checkpoints of one work directory: the newest `keep`, and the best `keep_best` by `best`.

    Args:
      options: `config.checkpoint`.

    Raises:
      UserError: for a `best_mode` that is neither "max" nor "min".
    """

    def __init__(self, directory: Path, options: ConfigDict):
        self.directory, self.best = directory, options.best
        if options.best_mode not in WORST:
            raise UserError(f"checkpoint.best_mode={options.best_mode!r} must be 'max' or 'min'")

        def figure(metrics: Mapping[str, float]) -> float:
            return metrics.get(BEST, WORST[options.best_mode])

        policies = [preservation.LatestN(options.keep)]
        if self.best:
            policies.append(
                preservation.BestN(
                    get_metric_fn=figure,
                    reverse=options.best_mode == "min",
                    n=options.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy(policies),
                best_fn=figure if self.best else None,
                best_mode=options.best_mode,
                enable_async_checkpointing=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self.manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the best figure so far, or None."""
        return self.manager.best_step() if self.best else None

    def save(
        self, step: int, state: TrainState, data: dict, figures: Mapping[str, float] | None = None
    ) -> None:
        """Starts writing; returns once the arrays are copied. A failure surfaces at the next call.

        Args:
          figures: of an evaluation of this state, with `best` among them if that is set.

        Raises:
          UserError: when the disk refuses, or there is no figure `best`.
        """
        item = ocp.args.StandardSave
        args = ocp.args.Composite(
            model=item(state.model_part()), optimizer=item(state.opt_state), data=ocp.args.JsonSave(data)
        )
        if self.best and figures is not None and self.best not in figures:
            raise UserError(
                f"checkpoint.best={self.best!r} is not evaluated{nearest(self.best, figures)}; "
                f"there are {sorted(figures)}"
            )
        metrics = {BEST: float(figures[self.best])} if self.best and figures else {}
        self._guarded(lambda: self.manager.save(step, args=args, metrics=metrics, force=True))

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
        distributed.meet("set aside damaged checkpoints")
        self.manager.reload()

    def restore_model(self, abstract: dict[str, Any], which: str = "newest") -> dict[str, Any] | None:
        """Only the "model" item: what evaluation and prediction need.

        Args:
          which: "newest", "best" or a step.

        Raises:
          UserError: when there is no such checkpoint.
        """
        args = ocp.args.Composite(model=ocp.args.StandardRestore(abstract))
        if which == "newest":
            _, found = self._newest(args)
            return None if found is None else found["model"]
        step = self.best_step if which == "best" else next((s for s in self.steps if str(s) == which), None)
        if step is None:
            raise UserError(f"{self.directory} has no checkpoint {which!r}; it has the steps {self.steps}")
        return self.manager.restore(step, args=args)["model"]

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
