"""Running a stack of equal blocks: as a Python loop or a scan, with or without rematerialisation.

Both forms use the same parameter tree (`blocks/0/...`, `blocks/1/...`), hence one checkpoint layout.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from lookupjax.attention.mixer import is_tapped
from lookupjax.errors import UserError
from lookupjax.layers.regularise import drop_path_rates
from lookupjax.layers.rngs import Keys

REMAT = ("none", "block", "dots")
Carry = TypeVar("Carry")


def run_blocks(
    blocks: nnx.List,
    call: Callable[..., Carry],
    carry: Carry,
    *,
    drop_path: float = 0.0,
    rngs: nnx.Rngs | None = None,
    remat: str = "none",
    scan: bool = False,
) -> Carry:
    """carry = call(block, carry, drop_path=rate_i, rngs=rngs_i) for every block in turn.

    Args:
      blocks: modules without state beside their parameters when `scan` or `remat` is used, and of equal
        structure for `scan`.
      drop_path: stochastic-depth rate of the last block; the rates grow linearly from 0.
      rngs: None in evaluation. Every block gets its own stream, the same in both forms.
      remat: "block" recomputes each block in the backward pass, "dots" keeps its matrix products.
      scan: compile one block and loop over it; shorter compilation, the parameters are stacked per step.

    Raises:
      UserError: for an unknown `remat`, or `scan` over unequal blocks.
    """
    if remat not in REMAT:
        raise UserError(f"remat={remat!r} is unknown; choose one of {REMAT}")
    depth = len(blocks)
    rates = drop_path_rates(drop_path, depth)
    keys = None if rngs is None else jax.random.split(rngs.blocks(), depth)

    def step(block, carry, rate, key):
        return call(block, carry, drop_path=rate, rngs=None if key is None else Keys(key))

    if is_tapped(blocks) or (remat == "none" and not scan):
        for i, block in enumerate(blocks):
            carry = step(block, carry, rates[i], None if keys is None else keys[i])
        return carry

    def body(block: nnx.Module) -> Callable:
        graphdef = nnx.graphdef(block)

        def pure(carry, layer):
            state, rate, key = layer
            return step(nnx.merge(graphdef, state, copy=True), carry, rate, key), None

        if remat == "none":
            return pure
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        return jax.checkpoint(pure, policy=policy, prevent_cse=not scan)

    states = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
    if scan:
        shapes = {str(jax.tree.map(jnp.shape, state)) for state in states}
        if len(shapes) > 1 or any(nnx.graphdef(block) != nnx.graphdef(blocks[0]) for block in blocks):
            raise UserError("scan=True needs equal blocks; use scan=False where each has its own mixer")
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return jax.lax.scan(body(blocks[0]), carry, (stacked, jnp.asarray(rates), keys))[0]
    for i, (block, state) in enumerate(zip(blocks, states)):
        carry, _ = body(block)(carry, (state, rates[i], None if keys is None else keys[i]))
    return carry
