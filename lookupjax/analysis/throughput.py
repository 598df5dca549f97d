"""Images per second of several contenders, visited in turn so that all see the same machine."""

import statistics
import time
from collections.abc import Callable

import jax


def images_per_second(
    contenders: dict[str, Callable[[], jax.Array]], images_per_call: int, rounds: int = 7, calls: int = 10
) -> dict[str, float]:
    """Median over rounds, each timing `calls` calls of every contender as one block, after a warm-up."""
    for call in contenders.values():
        jax.block_until_ready([call() for _ in range(3)])
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready([call() for _ in range(calls)])
            seconds[name].append(time.perf_counter() - start)
    return {name: images_per_call * calls / statistics.median(times) for name, times in seconds.items()}
