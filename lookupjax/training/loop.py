"""The training loop: data -> step -> metrics, evaluation and checkpoints, until the last step.

Restore priority: the newest readable checkpoint of the work directory, else the initial state.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from lookupjax.data.loader import train_iterator
from lookupjax.errors import UserError
from lookupjax.evaluation import create_evaluators, describe, flatten_results, run_evaluators
from lookupjax.evaluation.context import Call, call_name
from lookupjax.training import distributed, sharding
from lookupjax.training.checkpoint import Checkpoints
from lookupjax.training.experiment import Experiment, check_compressed, evaluation_params
from lookupjax.training.metrics import MetricWriter
from lookupjax.training.progress import Reporter
from lookupjax.training.state import TrainState
from lookupjax.training.step import make_train_step

IN_FLIGHT = 2  # steps dispatched ahead of the one whose metrics are read


class Interrupted(Exception):
    """SIGTERM arrived: the state of the current step is on disk."""


def draw_call(seed: int, step: int, calls: list[Call]) -> Call:
    """The call variant of a step, uniformly drawn; the same on every process."""
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return calls[int(generator.integers(len(calls)))]


@dataclass
class Window:
    """What accumulates between two logs: metrics of every step and where the time went."""

    began: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "step": 0.0, "checkpoint": 0.0})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Means over the steps, and milliseconds per step by part ("other" is evaluation and logging)."""
        steps = max(len(self.rows), 1)
        keys = self.rows[0] if self.rows else {}
        means = {f"train/{k}": float(np.mean([row[k] for row in self.rows])) for k in keys}
        total = time.perf_counter() - self.began
        parts = self.seconds | {"other": total - sum(self.seconds.values())}
        return means | {f"time/{k}_ms": 1e3 * v / steps for k, v in parts.items()}


class PendingMetrics:
    """Metrics still on the device: read a few steps late, so that the device never waits for the host."""

    def __init__(self, describe_last_good):
        self.queue: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.describe_last_good = describe_last_good

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        jax.tree.map(lambda x: x.copy_to_host_async(), metrics)
        self.queue.append((step, metrics))

    def pop(self, keep: int) -> list[dict[str, float]]:
        """Rows of all but the last `keep` steps.

        Raises:
          UserError: when a loss is not finite, naming its step.
        """
        rows = []
        while len(self.queue) > keep:
            step, metrics = self.queue.popleft()
            row = {k: float(v) for k, v in jax.device_get(metrics).items()}
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"the loss is {row['loss']} at step {step}; training stops. {self.describe_last_good()} "
                    "Lower optimizer.learning_rate, lengthen schedule.warmup_steps or check the data, "
                    "then start again"
                )
            rows.append(row)
        return rows


def compile_steps(experiment: Experiment, batch: dict[str, jax.Array], reporter: Reporter) -> dict[Call, Any]:
    """One compiled train step per call variant, all of them before the first step."""
    config = experiment.config
    step = make_train_step(
        experiment.graphdef,
        experiment.task,
        experiment.optimizer,
        experiment.schedule,
        seed=config.seed,
        mixing=experiment.mixing,
        frozen=config.frozen,
        accumulate=config.accumulate,
        ema=config.ema,
    )
    batch_shardings = {k: NamedSharding(experiment.mesh, sharding.BATCH) for k in batch}
    jitted = jax.jit(
        step,
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(experiment.state_shardings, batch_shardings),
        out_shardings=(experiment.state_shardings, None),
    )
    calls = experiment.calls()
    for call in calls:
        for _, grid in call:
            check_compressed(experiment, grid, batch["image"].shape[1:-1])

    def compiled(call: Call) -> Any:
        start = time.perf_counter()
        program = jitted.lower(experiment.abstract_state, batch, call).compile()
        reporter.line(f"compiled the step {call_name(call)} in {time.perf_counter() - start:.1f} s")
        return program

    reporter.line(f"compiling {len(calls)} program{'s' if len(calls) > 1 else ''}")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(calls, pool.map(compiled, calls)))


def train(experiment: Experiment, workdir: Path, name: str) -> tuple[TrainState, dict]:
    """Trains to config.steps and returns (state, final evaluation {grid text: figures}).

    Raises:
      UserError: for what the user can mend (sizes, disk, a loss that is not finite).
      Interrupted: after SIGTERM, with a checkpoint of the current step on disk.
    """
    config, mesh = experiment.config, experiment.mesh
    sharding.check_batch_size(config.batch_size, mesh, "config.batch_size", config.accumulate)
    index, count = sharding.batch_share(mesh)
    data = train_iterator(
        config.data, config.batch_size, config.seed, process_index=index, process_count=count
    )
    context = experiment.context(experiment.calls(), workdir / "evaluation")
    evaluators = create_evaluators(config.evaluators.to_dict(), context)

    with (
        Checkpoints(workdir / "checkpoints", config.checkpoint.keep) as checkpoints,
        distributed.preemption() as preempted,
    ):
        restored = checkpoints.restore(experiment.abstract_state)
        if restored is None:
            state = experiment.create_state()
        else:
            state, position = restored
            data.set_state(position)
        start = step = int(state.step)
        reporter = Reporter(name, start, config.steps)
        writer = MetricWriter(workdir, start)
        if start:
            reporter.line(f"resuming at step {start}")

        def last_good() -> str:
            steps = checkpoints.steps
            return (
                f"The last good checkpoint, step {steps[-1]}, is kept."
                if steps
                else "There is no checkpoint yet."
            )

        def save() -> None:
            with window.timed("step"):
                window.rows += pending.pop(keep=0)  # never save a state after a loss that is not finite
            with window.timed("checkpoint"):
                checkpoints.save(step, state, data.get_state())

        def evaluate() -> dict[str, dict[str, float]]:
            results = run_evaluators(evaluators, evaluation_params(state.model_part()), state.stats)
            writer.write(step, flatten_results(results))
            return results

        pending, window = PendingMetrics(last_good), Window()
        programs, results = {}, {}
        try:
            while step < config.steps:
                with window.timed("data"):
                    batch = sharding.global_batch(next(data), mesh)
                if not programs:
                    programs = compile_steps(experiment, batch, reporter)
                    window = Window()
                call = draw_call(config.seed, step, list(programs))
                with window.timed("step"):
                    state, metrics = programs[call](state, batch)
                    step += 1
                    pending.push(step, metrics)
                    window.rows += pending.pop(keep=IN_FLIGHT)
                reporter.update(step)
                if config.checkpoint.every and step % config.checkpoint.every == 0 and step < config.steps:
                    save()
                if step % config.log_every == 0 or step == config.steps:
                    with window.timed("step"):
                        window.rows += pending.pop(keep=0)
                    summary = window.summary()
                    writer.write(step, summary)
                    reporter.log(step, len(window.rows) / (time.perf_counter() - window.began), summary)
                    window = Window()
                if config.eval_every and step % config.eval_every == 0 and step < config.steps:
                    evaluate()
                if preempted(step):
                    save()
                    checkpoints.wait()
                    raise Interrupted(f"SIGTERM: saved step {step}; start again to go on")
            if step > start or restored is None:
                save()
            results = evaluate()
            for line in describe(results):
                reporter.line(f"test {line}")
            checkpoints.wait()
        finally:
            writer.close()
            reporter.close()
    return state, results
