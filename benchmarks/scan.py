"""A Python loop over the blocks against a scan, each with and without recomputation.

    python benchmarks/scan.py [--depths 12] [--rounds=5] [--config.key=value ...]

Compiles and runs the real training step of the quickstart's LookupViT at each depth and prints the seconds
to trace and compile, the medians of the step, interleaved, and the compiler's temporaries.
"""

import argparse
import statistics
import time

import jax

from lookupjax.config import load_config
from lookupjax.data.loader import train_iterator
from lookupjax.training.experiment import Experiment, resolve
from lookupjax.training.program import trace_step
from lookupjax.training.sharding import global_batch, make_mesh

FORMS = [("loop", "none"), ("scan", "none"), ("loop", "block"), ("scan", "block")]
CALLS = 5  # per round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[12])
    parser.add_argument("--rounds", type=int, default=5)
    args, overrides = parser.parse_known_args()
    fixed = ["--config.grids=((4,4),)", "--config.schedule.warmup_steps=0", "--config.model.drop_path=0.1"]
    print(
        f"device {jax.devices()[0].device_kind}, medians of {args.rounds} interleaved rounds of {CALLS} steps"
    )
    for depth in args.depths:
        steps, states, seconds, notes = {}, {}, {}, {}
        for form, remat in FORMS:
            more = [
                f"--config.model.{key}"
                for key in (f"depth={depth}", f"scan={form == 'scan'}", f"remat={remat}")
            ]
            config = resolve(load_config("configs/quickstart.py", [*fixed, *more, *overrides]))
            experiment = Experiment(config, make_mesh(config.mesh))
            data = train_iterator(config.data, config.batch_size, config.seed)
            batch = global_batch(next(data), experiment.mesh)
            start = time.perf_counter()
            traced = trace_step(experiment, batch, experiment.calls()[0])
            middle = time.perf_counter()
            program = traced.lower().compile()
            end = time.perf_counter()
            key = f"{form}, remat={remat}"
            temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
            notes[key] = (
                f"traced {middle - start:5.1f} s, compiled {end - middle:5.1f} s, "
                f"{temporaries:6.0f} MiB temporaries"
            )
            steps[key], states[key], seconds[key] = program, experiment.create_state(), []
        for round_number in range(args.rounds + 1):  # the first warms up
            for key, program in steps.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    states[key], _ = program(states[key], batch)
                jax.block_until_ready(states[key])
                if round_number:
                    seconds[key].append((time.perf_counter() - start) / CALLS)
        base = statistics.median(seconds["loop, remat=none"])
        print(f"depth {depth}, width {config.model.dim}, batch {config.batch_size}")
        for key, values in seconds.items():
            median = statistics.median(values)
            print(
                f"  {key:20s} {notes[key]}, step {1e3 * median:7.1f} ms, {median / base:.2f} of the loop's",
                flush=True,
            )


if __name__ == "__main__":
    main()
