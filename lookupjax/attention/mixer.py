"""The common shape of every token mixer, and the one mechanism for looking inside it.

A mixer is built as `Mixer(dim, num_heads, *, rngs, ...own options)` and called as
`mixer(x, context=None, *, mask=None, grid=None, causal=False, rngs=None)`. What its mathematics does
not allow it declares in the class attributes below, and asking for it raises.

Taps. Inside its call a mixer passes named intermediate values (q, k, v, scores, weights, output)
through `self.tap(name, value)`. Untouched, that is the identity and costs nothing. `with_taps`
returns a copy of a model, sharing its parameters, in which one function sees every tap and may
return something else in its place: reading and intervening are the same mechanism. The names mean the
same everywhere: "weights" is the whole map (b, heads, queries, keys) that multiplies v, even in a mixer
that never forms it otherwise (it then does so for a listener, `self.tapped`). A mixer that works in windows
has its weights per window; for a listener it also says which token stood where: "places" (see
`attention.dense`), or "map", the weights over all tokens. These two are for reading only.

Auxiliary losses. A mixer that adds to the training loss (a balance of its routing) sets `has_aux_loss`
and implements `mix`, which returns (output, loss); models call `mix` and hand the mean over their layers
on as the output "aux_loss".
"""

from collections import Counter
from collections.abc import Callable, Collection

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lookupjax.errors import UserError

TapFn = Callable[[str, str, Array], Array]


class Tapped(nnx.Module):
    """A module with named intermediate values that others can read and replace."""

    tap_fn: Callable[[str, Array], Array] | None = None

    def tap(self, name: str, value: Array) -> Array:
        """Shows `value` to whoever listens under `name`; returns it or what replaces it."""
        return value if self.tap_fn is None else self.tap_fn(name, value)

    @property
    def tapped(self) -> bool:
        """Whether anyone listens."""
        return self.tap_fn is not None


class TokenMixer(Tapped):
    """Base class: declared abilities, their check, and the taps."""

    supports_context = False  # keys and values from other tokens than the queries
    supports_mask = False  # a boolean mask over (queries, keys)
    supports_causal = False  # each token attends to itself and earlier ones only
    needs_grid = False  # `grid` must be given: the mathematics uses the 2-D layout
    supports_prefix = False  # (with needs_grid) tokens before the grid; takes `prefix=` in the constructor
    has_aux_loss = False  # `mix` returns a loss to be added in training

    def mix(
        self,
        x: Float[Array, "b m d"],
        context: Float[Array, "b n d"] | None = None,
        *,
        mask: Bool[Array, "#b #h m n"] | None = None,
        grid: tuple[int, ...] | None = None,
        causal: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b m d"], Float[Array, ""]]:
        """(output, auxiliary loss): a call that also returns what the mixer adds to the training loss."""
        return self(x, context, mask=mask, grid=grid, causal=causal, rngs=rngs), jnp.zeros(())

    def check_aux(self, rngs: nnx.Rngs | None) -> None:
        """Raises UserError where a training call would lose the auxiliary loss."""
        if self.has_aux_loss and rngs is not None:
            raise UserError(
                f"{type(self).__name__} adds to the training loss, which this model does not pass on; use it "
                "in vit or lookupvit, or switch its loss off"
            )

    def check_call(
        self,
        context: Float[Array, "..."] | None,
        mask: Bool[Array, "..."] | None,
        grid: tuple[int, ...] | None,
        causal: bool,
    ) -> None:
        """Raises UserError for a request that this mixer's mathematics does not allow."""
        name = type(self).__name__
        for asked, able, what in (
            (context is not None, self.supports_context, "cross-attention (context=)"),
            (mask is not None, self.supports_mask, "masks (mask=)"),
            (causal, self.supports_causal, "causal attention (causal=True)"),
        ):
            if asked and not able:
                raise UserError(f"{name} does not support {what}; use attention='softmax' there")
        if self.needs_grid and grid is None:
            raise UserError(f"{name} works on a token grid: pass grid=(height, width)")


def with_taps(model: nnx.Module, fn: TapFn) -> nnx.Module:
    """A copy of `model` (sharing its parameters) whose taps all go through `fn(path, name, value)`.

    `path` is the mixer's place in the model, such as "blocks/3/attn". `fn` returns the value to go on
    with. Works under jit and grad as long as everything `fn` stores is returned from the same trace. Who
    already listens to `model` sees the values first.
    """
    tapped = nnx.merge(*nnx.split(model))
    for path, module in nnx.iter_modules(tapped):
        if isinstance(module, Tapped):
            module.tap_fn = _chain(module.tap_fn, "/".join(map(str, path)), fn)
    return tapped


def _chain(outer: Callable[[str, Array], Array] | None, place: str, fn: TapFn) -> Callable:
    if outer is None:
        return lambda name, value: fn(place, name, value)
    return lambda name, value: fn(place, name, outer(name, value))


def is_tapped(module: nnx.Module) -> bool:
    """Whether any mixer inside `module` has a listener (then loops over blocks stay unrolled)."""
    return any(getattr(m, "tap_fn", None) is not None for _, m in nnx.iter_modules(module))


def record_taps(
    model: nnx.Module, *args, names: Collection[str] = ("weights",), **kwargs
) -> tuple[object, dict[str, Array]]:
    """Calls the model and also returns the named taps of every mixer, as {"path/name": value}.

    Of a mixer that is called several times (shared by all blocks) the n-th later call is "path/name/n".
    """
    seen: dict[str, Array] = {}
    calls: Counter[str] = Counter()

    def listen(place: str, name: str, value: Array) -> Array:
        if name in names:
            key = f"{place}/{name}"
            seen[f"{key}/{calls[key]}" if calls[key] else key] = value
            calls[key] += 1
        return value

    return with_taps(model, listen)(*args, **kwargs), seen
