"""Early exit in batches that saves the time it promises.

A batch cannot stop for some of its images. So every exit has a queue: images that stay are written behind
those already waiting for the next segment, which runs when a whole batch waits. All arrays keep their
shapes, so each segment is one compiled program; only the confidences come back to the host.

    images -> segment 0 -> confident? prediction : queue 1 -> (batch full?) segment 1 -> ...
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

Carry = Any  # arrays with the batch as first axis


@jax.jit
def append(queue: Carry, carry: Carry, keep: Bool[Array, "b"], waiting: Int[Array, ""]) -> Carry:
    """Writes the kept rows of `carry` behind the first `waiting` rows of the queue (two batches long)."""
    place = jnp.where(keep, waiting + jnp.cumsum(keep) - 1, 2 * keep.shape[0])  # past the end: dropped
    return jax.tree.map(lambda q, c: q.at[place].set(c, mode="drop"), queue, carry)


@jax.jit
def pop(queue: Carry) -> tuple[Carry, Carry]:
    """(the first batch, the queue without it)."""
    half = jax.tree.leaves(queue)[0].shape[0] // 2
    return jax.tree.map(lambda q: q[:half], queue), jax.tree.map(lambda q: jnp.roll(q, -half, 0), queue)


class BatchedExits:
    """Runs a model with `run_segment` (see `models/dynperceiver.py`) under thresholds.

    Args:
      limits: of each exit; the last must let everything leave.
      batch_size: of every segment's program.
    """

    def __init__(self, model: nnx.Module, limits: Float[np.ndarray, "e"], batch_size: int):
        self.graphdef, self.state = nnx.split(model)
        self.limits, self.batch_size = limits, batch_size
        self.segments = [jax.jit(self._segment(i)) for i in range(len(limits))]

    def _segment(self, exit: int) -> Callable:
        def run(state: Any, carry: Carry) -> tuple[Float[Array, "b"], Int[Array, "b"], Carry]:
            logits, carry = nnx.merge(self.graphdef, state).run_segment(exit, carry)
            probabilities = jax.nn.softmax(logits)
            return probabilities.max(-1), probabilities.argmax(-1), carry

        return run

    def __call__(
        self, images: Float[np.ndarray, "n h w c"]
    ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """(predicted class, exit taken) of every image."""
        n, size, last = len(images), self.batch_size, len(self.limits) - 1
        predicted, taken = np.zeros(n, np.int32), np.zeros(n, np.int32)
        queues: list[Carry] = [None] * (last + 1)
        waiting: list[list[int]] = [[] for _ in range(last + 1)]

        def run(exit: int, carry: Carry, members: list[int]) -> None:
            confidence, classes, carry = self.segments[exit](self.state, carry)
            confidence, classes = jax.device_get((confidence, classes))
            keep = np.zeros(size, bool)
            for row, member in enumerate(members):
                keep[row] = confidence[row] < self.limits[exit]
                if not keep[row]:
                    predicted[member], taken[member] = classes[row], exit
            if not keep.any():
                return
            queue = queues[exit + 1]
            if queue is None:
                queue = jax.tree.map(lambda c: jnp.zeros((2 * size, *c.shape[1:]), c.dtype), carry)
            queues[exit + 1] = append(queue, carry, keep, jnp.int32(len(waiting[exit + 1])))
            waiting[exit + 1] += [member for row, member in enumerate(members) if keep[row]]
            if len(waiting[exit + 1]) >= size:
                advance(exit + 1)

        def advance(exit: int) -> None:
            carry, queues[exit] = pop(queues[exit])
            members, waiting[exit] = waiting[exit][:size], waiting[exit][size:]
            run(exit, carry, members)

        for start in range(0, n, size):
            batch = images[start : start + size]
            padded = np.zeros((size, *images.shape[1:]), images.dtype)
            padded[: len(batch)] = batch
            run(0, (jnp.asarray(padded),), list(range(start, start + len(batch))))
        for exit in range(1, last + 1):
            while waiting[exit]:
                advance(exit)
        return predicted, taken
