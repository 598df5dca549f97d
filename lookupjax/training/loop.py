"""The training loop: data -> step -> metrics, evaluation and checkpoints, until the last step.

Restore priority: the newest readable checkpoint of the work directory, else config.init, else from scratch.
"""

import math
from collections import deque
from functools import partial
from pathlib import Path

import jax
import numpy as np

from lookupjax.data.loader import train_iterator
from lookupjax.errors import UserError
from lookupjax.evaluation import create_evaluators, describe, flatten_results, run_evaluators
from lookupjax.evaluation.context import Call
from lookupjax.training import distributed, sharding
from lookupjax.training.checkpoint import Checkpoints
from lookupjax.training.debug import Profiler
from lookupjax.training.experiment import Experiment, evaluation_params
from lookupjax.training.goodput import Attempts, Stopwatch, describe_goodput, goodput
from lookupjax.training.init import initialise
from lookupjax.training.metrics import MetricWriter
from lookupjax.training.program import compile_steps
from lookupjax.training.progress import Reporter
from lookupjax.training.state import TrainState
from lookupjax.training.tokens import write_tokens

BEFORE = ("start-up", "compilation")  # parts of the time that no step takes
IN_FLIGHT = 2  # steps dispatched ahead of the one whose metrics are read


class Interrupted(Exception):
    """SIGTERM arrived: the state of the current step is on disk."""


def draw_call(seed: int, step: int, calls: list[Call]) -> Call:
    """The call variant of a step, uniformly drawn; the same on every process."""
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return calls[int(generator.integers(len(calls)))]


class Window:
    """What accumulates between two logs: metrics of every step and where the time went."""

    def __init__(self, watch: Stopwatch):
        self.watch, self.before = watch, watch.seconds
        self.rows: list[dict[str, float]] = []

    def summary(self) -> tuple[float, dict[str, float]]:
        """(steps per second, means over the steps and milliseconds per step by part)."""
        steps = max(len(self.rows), 1)
        keys = self.rows[0] if self.rows else {}
        means = {f"train/{k}": float(np.mean([row[k] for row in self.rows])) for k in keys}
        seconds = {k: v - self.before[k] for k, v in self.watch.seconds.items()}
        times = {f"time/{k}_ms": 1e3 * v / steps for k, v in seconds.items() if k not in BEFORE}
        return steps / sum(seconds.values()), means | times


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


def train(experiment: Experiment, workdir: Path, name: str) -> tuple[TrainState, dict]:
    """Trains to config.steps and returns (state, final evaluation {grid text: figures}).

    Raises:
      UserError: for what the user can mend (sizes, disk, a loss that is not finite).
      Interrupted: after SIGTERM, with a checkpoint of the current step on disk.
    """
    config, mesh, watch = experiment.config, experiment.mesh, Stopwatch()
    sharding.check_batch_size(config.batch_size, mesh, "config.batch_size", config.accumulate)
    index, count = sharding.batch_share(mesh)
    read = partial(
        train_iterator, config.data, config.batch_size, config.seed, process_index=index, process_count=count
    )
    data = read()
    context = experiment.context(experiment.calls(), workdir / "evaluation")
    evaluators = create_evaluators(config.evaluators.to_dict(), context)

    with (
        Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints,
        distributed.preemption() as preempted,
    ):
        with watch.timed("start-up"):
            restored = checkpoints.restore(experiment.abstract_state)
            if restored is not None:
                state, position = restored
                data.set_state(position)
            else:
                state = experiment.create_state()
        start = step = int(state.step)
        reporter = Reporter(name, start, config.steps)
        writer = MetricWriter(workdir, start)
        attempts = Attempts(workdir, start, watch)
        profiler = Profiler(workdir / "profile", start + config.profile.after, config.profile.steps)
        if restored is not None:
            reporter.line(f"resuming at step {start}")
        elif config.init.path:
            with watch.timed("start-up"):
                state, report = initialise(state, config.init, mesh, experiment.abstract_model)
            for line in report.lines():
                reporter.line(line)
        if config.cache_tokens and start < config.steps:
            with watch.timed("start-up"):
                position = data.get_state()
                data = read(tokens=str(write_tokens(experiment, state, workdir / "tokens", reporter)))
                data.set_state(position)

        def last_good() -> str:
            steps = checkpoints.steps
            return (
                f"The last good checkpoint, step {steps[-1]}, is kept."
                if steps
                else "There is no checkpoint yet."
            )

        def save(figures: dict[str, float] | None = None) -> None:
            with watch.timed("step"):
                window.rows += pending.pop(keep=0)  # never save a state after a loss that is not finite
            with watch.timed("checkpoint"):
                checkpoints.save(step, state, data.get_state(), figures)
            attempts.saved(step)

        def evaluate() -> dict[str, dict[str, float]]:
            with watch.timed("step"):
                jax.block_until_ready(state)
            with watch.timed("evaluation"):
                results = run_evaluators(evaluators, evaluation_params(state.model_part()), state.stats)
            writer.write(step, flatten_results(results))
            return results

        def due(every: int) -> bool:
            return step == config.steps or (every > 0 and step % every == 0)

        pending, window = PendingMetrics(last_good), Window(watch)
        programs, results = {}, {}
        if start == config.steps:
            results = evaluate()
        try:
            while step < config.steps:
                with watch.timed("data"):
                    batch = sharding.global_batch(next(data), mesh)
                if not programs:
                    with watch.timed("compilation"):
                        programs = compile_steps(experiment, batch, reporter)
                        distributed.meet("the steps are compiled")
                    window = Window(watch)
                call = draw_call(config.seed, step, list(programs))
                profiler.before(step, state)
                with watch.timed("step"):
                    state, metrics = programs[call](state, batch)
                    step += 1
                    pending.push(step, metrics)
                    window.rows += pending.pop(keep=IN_FLIGHT)
                reporter.update(step)
                if due(config.log_every):
                    with watch.timed("step"):
                        window.rows += pending.pop(keep=0)
                    rate, summary = window.summary()
                    writer.write(step, summary)
                    reporter.log(step, rate, summary)
                    window = Window(watch)
                evaluated, to_save = due(config.eval_every), due(config.checkpoint.every)
                if to_save and not (evaluated and checkpoints.best):  # before anything can go wrong
                    save()
                if evaluated:
                    results = evaluate()
                    if checkpoints.best:
                        save(flatten_results(results))
                if preempted(step) and step < config.steps:
                    if step not in checkpoints.steps:
                        save()
                    checkpoints.wait()
                    raise Interrupted(f"SIGTERM: saved step {step}; start again to go on")
            for line in describe(results):
                reporter.line(f"test {line}")
            checkpoints.wait()
            if attempts.record["to"] > start:
                writer.write(step, {f"goodput/{k}": v for k, v in goodput(attempts.records).items()})
                reporter.line(describe_goodput(attempts.records))
        finally:
            profiler.stop(state)
            writer.close()
            reporter.close()
    return state, results
