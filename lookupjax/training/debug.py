"""Looking into a run: profiler traces of some steps, and the operation that made a NaN."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import checkify

from lookupjax.errors import UserError


class Profiler:
    """Traces `steps` steps from step `first` of this start into `directory` (TensorBoard, xprof).

    Process 0 traces; 0 steps trace nothing.
    """

    def __init__(self, directory: Path, first: int, steps: int):
        self.directory, self.first, self.steps = directory, first, steps
        self.ends: int | None = None

    def before(self, step: int, state: Any) -> None:
        """To be called before each step; `state` is what the steps so far computed."""
        if not self.steps or jax.process_index() != 0:
            return
        if self.ends is None and step >= self.first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.directory)
            self.ends = step + self.steps
        elif step == self.ends:
            self.stop(state)

    def stop(self, state: Any) -> None:
        """Ends a trace under way."""
        if self.ends is not None and self.steps:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.steps = 0


def with_nan_checks(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step that also returns an error, (error, (state, metrics)), set by the first NaN."""
    return checkify.checkify(step, errors=checkify.nan_checks)


def raising(program: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled `with_nan_checks` step as a plain one that raises.

    Raises:
      UserError: naming the operation whose result was NaN and its line.
    """

    def checked(state: Any, batch: Any) -> Any:
        error, result = program(state, batch)
        if message := error.get():
            raise UserError(f"check_nans: {' '.join(message.split())}")
        return result

    return checked
