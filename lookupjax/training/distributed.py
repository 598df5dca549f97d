"""Joining a job of several processes, stopping together, and leaving in bounded time.

One process per host (TPU, GPU) or any number on one machine (CPU); all of them run the same command.
"""

import argparse
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lookupjax.errors import UserError

T = TypeVar("T")
# of what JAX raises where it finds no cluster, and where a program that has used JAX calls an entry point
ALONE = ("coordinator_address", "before any JAX calls")
INIT_TIMEOUT = 300  # seconds to wait for all processes at the start
LONGEST_WAIT = 24 * 3600  # seconds: process 0 may prepare a dataset, or compile on a busy machine
MEETINGS = itertools.count()  # a name serves once


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every entry point that can run as several processes."""
    group = parser.add_argument_group(
        "several processes", "On TPU pods, SLURM and Open MPI nothing needs to be given: JAX finds the job."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; the same on all processes")
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument("--process_id", type=int, metavar="I", help="0 ... N-1")
    group.add_argument(
        "--heartbeat_timeout",
        type=int,
        default=60,
        metavar="SECONDS",
        help="a process silent for so long counts as dead, and the job ends (default 60)",
    )


def start(args: argparse.Namespace) -> None:
    """Joins the job of the flags or of the cluster JAX finds itself in; alone otherwise.

    To be called before anything else touches a device.

    Raises:
      UserError: when some of the flags are missing.
    """
    given = (args.coordinator, args.num_processes, args.process_id)
    if any(x is not None for x in given) and None in given:
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all or none")
    timeouts = dict(
        initialization_timeout=INIT_TIMEOUT,
        heartbeat_timeout_seconds=args.heartbeat_timeout,
    )
    if args.coordinator:
        jax.distributed.initialize(*given, cluster_detection_method="deactivate", **timeouts)
        return
    try:
        jax.distributed.initialize(**timeouts)
    except (ValueError, RuntimeError) as error:
        if not any(words in str(error) for words in ALONE):
            raise


@contextmanager
def leave_together() -> Iterator[None]:
    """Ends this process at once when it fails, so that the others notice and end too.

    An orderly exit would wait for processes that wait for this one.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def first_process_first(work: Callable[[], T]) -> T:
    """work() on process 0, then on the others: it may prepare files that all of them need."""
    if jax.process_index() > 0:
        meet("process 0 is done")
    result = work()
    if jax.process_index() == 0:
        meet("process 0 is done")
    return result


def meet(where: str) -> None:
    """Waits for all processes, however far apart they are; one that dies ends the wait with an error.

    Through the service of the job: an operation on the devices, which would do as well, gives up after 30
    seconds on CPUs.
    """
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=f"lookupjax {next(MEETINGS)}: {where}", timeout_ms=1000 * LONGEST_WAIT)


@contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Gives `reached(step)`, to be asked after every step: whether to save now and stop, after SIGTERM.

    Of several processes all stop at the same step, whichever got the signal: JAX's service of the job
    receives it and agrees on a step.
    """
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
