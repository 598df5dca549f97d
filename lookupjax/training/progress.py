"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Says how far training is. `update` is cheap enough for every step; `line` prints at once."""

    def __init__(self, name: str, start: int, total: int):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.silent = jax.process_index() != 0
        self.bar = None
        if sys.stderr.isatty() and not self.silent:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(name, total=total, completed=start, note="")
            self.bar.start()
        self.name, self.total, self.first, self.began = name, total, start, time.monotonic()

    def line(self, text: str) -> None:
        if not self.silent:
            self.console.print(f"[{self.name}] {text}", markup=False)

    def update(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def log(self, step: int, rate: float, values: dict[str, float]) -> None:
        """`rate` in steps per second since the last log."""
        shown = [
            f"{k.removeprefix('train/')} {values[k]:.4g}"
            for k in ("train/loss", "train/accuracy")
            if k in values
        ]
        note = f"{rate:.1f} step/s  " + "  ".join(shown)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, note=note)
        else:
            left = (self.total - step) / max(rate, 1e-9)
            self.line(f"step {step}/{self.total}  {note}  {_duration(left)} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
