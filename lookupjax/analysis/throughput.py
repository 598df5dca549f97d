"""Images per second of several contenders, visited in turn so that all see the same machine."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

R = TypeVar("R", bound=Any)


class Speed(NamedTuple):
    """Images per second: the median over rounds, and the quartiles that its spread is judged by."""

    median: float
    low: float
    high: float


def images_per_second(
    contenders: dict[str, Callable[[], Any]],
    images_per_call: int,
    rounds: int = 7,
    *,
    seconds_per_round: float = 0.2,
    elsewhere: Mapping[str, Callable[[float], tuple[int, float]]] = MappingProxyType({}),
) -> dict[str, Speed]:
    """Measures every contender `rounds` times, all of them in turn within a round.

    Args:
      contenders: calls without arguments that return arrays and process `images_per_call` images. Two
        calls before the first round warm them up; every call is waited for.
      seconds_per_round: a contender's call is repeated for as long in a round, at least once.
      elsewhere: contenders in other processes, visited in the same turn: f(seconds) gives (calls, seconds).
    """
    for call in contenders.values():
        for _ in range(2):
            jax.block_until_ready(call())

    def timed(call: Callable[[], Any], seconds: float) -> tuple[int, float]:
        calls = 0
        start = now = time.perf_counter()
        while now - start < seconds or not calls:
            jax.block_until_ready(call())
            calls, now = calls + 1, time.perf_counter()
        return calls, now - start

    turns = {name: partial(timed, call) for name, call in contenders.items()} | dict(elsewhere)
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            calls, seconds = turn(seconds_per_round)
            speeds[name].append(calls * images_per_call / seconds)
    quartiles = {name: np.percentile(values, (50, 25, 75)) for name, values in speeds.items()}
    return {name: Speed(*map(float, values)) for name, values in quartiles.items()}


def distinct(runs: Sequence[R]) -> list[R]:
    """Dataclasses with a `name`, each with one of its own: the second "vit" becomes "vit 2"."""
    seen: Counter[str] = Counter()
    found = []
    for run in runs:
        seen[run.name] += 1
        number = seen[run.name]
        found.append(run if number == 1 else replace(run, name=f"{run.name} {number}"))
    return found


def device_name() -> str:
    """What is measured on, as a report says it."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"one {device.device_kind}"
