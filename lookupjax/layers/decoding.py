"""Decoding: greedy, beam search and sampling, of anything that gives the logits of the next token.

    step(cache, token (rows,), place) -> (logits (rows, vocabulary), cache)

`cache["own"]` holds what belongs to a row (its keys and values), with the rows first; beams exchange it. All
shapes are static and loops end as soon as every text has ended, so everything can be jitted.

A text begins with `start` at place 0 and ends with `end`; at the last place it is closed whatever the word
would have been, and costs that word's log-probability (GIT). The score of a text is its log-probability over
((5 + tokens) / 6) ** length_penalty, where tokens counts `start` but not `end` (arXiv 1609.08144, eq. 14).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lookupjax.errors import UserError

Cache = dict[str, Any]
Step = Callable[[Cache, Int[Array, "r"], Int[Array, ""]], tuple[Float[Array, "r v"], Cache]]
METHODS = ("greedy", "beam", "sample")
NEVER = -1e9  # the score of what must not be chosen


@dataclass(frozen=True)
class Decoding:
    """How texts are written.

    Args:
      method: "greedy", "beam" or "sample".
      length: of the texts in tokens, `start` and `end` included.
      beams: texts that are followed at once.
      length_penalty: exponent of the score; 0 compares sums, 1 means of log-probabilities.
      early_stop: stop when `keep` texts have ended; otherwise when no other can do better.
      keep: ended texts that are kept; 0: as many as beams (GIT: 1).
      candidates: continuations per beam that are looked at; 2 leave enough when every beam may end.
      with_greedy: follow the greedy text as well, so that the result never scores less.
      temperature, top_k, top_p: of sampling: logits are divided by the first; of the most probable words
        only so many (0: all), or as few as have together the probability top_p, are drawn from.
      no_repeat: the word just written cannot be the next one (scenic).
      start, end, pad: tokens; `pad` stands behind `end`.
    """

    method: str = "beam"
    length: int = 32
    beams: int = 4
    length_penalty: float = 0.6
    early_stop: bool = True
    keep: int = 0
    candidates: int = 2
    with_greedy: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat: bool = False
    start: int = 1
    end: int = 2
    pad: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"method={self.method!r} is unknown; choose one of {METHODS}")
        for name, least in (("length", 3), ("beams", 1), ("candidates", 1), ("keep", 0), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise UserError("temperature must be above 0, and top_p above 0 and at most 1")

    @property
    def rows(self) -> int:
        """Texts per image that `step` has to go on with."""
        return self.beams if self.method == "beam" else 1

    def score(self, log_prob: Float[Array, "*s"], tokens: Int[Array, "..."] | int) -> Float[Array, "*s"]:
        length = jnp.asarray(tokens, jnp.float32)
        return log_prob / ((5.0 + length) / 6.0) ** self.length_penalty


def decode(
    step: Step, begin: Callable[[int], Cache], batch: int, options: Decoding, key: jax.Array | None = None
) -> dict[str, Array]:
    """{"tokens": (batch, length), "score": (batch,), "log_prob": (batch,)} of one text per example.

    Args:
      begin: rows per example -> the cache to begin with.
      key: of sampling.

    Raises:
      UserError: for sampling without a key.
    """
    if options.method == "beam":
        found = beam_search(step, begin(options.beams), batch, options)
        if options.with_greedy and options.beams > 1:
            plain = follow(step, begin(1), batch, options)
            better = plain["score"] > found["score"]
            found = {
                k: jnp.where(jnp.expand_dims(better, range(1, x.ndim)), plain[k], x) for k, x in found.items()
            }
        return found
    if options.method == "sample" and key is None:
        raise UserError("sampling needs a key")
    return follow(step, begin(1), batch, options, key if options.method == "sample" else None)


def log_probabilities(
    logits: Float[Array, "r v"], previous: Int[Array, "r"], options: Decoding
) -> Float[Array, "r v"]:
    if options.no_repeat:
        again = jax.nn.one_hot(previous, logits.shape[-1], dtype=jnp.bool_)
        logits = jnp.where(again, jnp.minimum(logits, -10_000.0), logits)
    return jax.nn.log_softmax(logits, axis=-1)


def restrict(log_probs: Float[Array, "r v"], options: Decoding) -> Float[Array, "r v"]:
    """Logits of the distribution that is sampled from: temperature, then top-k, then nucleus."""
    logits = log_probs / options.temperature
    if options.top_k:
        least = lax.top_k(logits, min(options.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    if options.top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(shares, axis=-1) - shares < options.top_p  # the most probable word always is
        least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def follow(
    step: Step, cache: Cache, batch: int, options: Decoding, key: jax.Array | None = None
) -> dict[str, Array]:
    """One text per example: the most probable next word each time or, with a key, a drawn one."""
    tokens = jnp.full((batch, options.length), options.pad, jnp.int32).at[:, 0].set(options.start)
    log_prob, count, ended = jnp.zeros((batch,)), jnp.ones((batch,), jnp.int32), jnp.zeros((batch,), bool)
    state = (jnp.int32(0), tokens, log_prob, count, cache, ended)

    def going(state: tuple) -> Bool[Array, ""]:
        return (state[0] < options.length - 1) & ~state[-1].all()

    def body(state: tuple) -> tuple:
        place, tokens, log_prob, count, cache, ended = state
        last = lax.dynamic_index_in_dim(tokens, place, axis=1, keepdims=False)
        logits, cache = step(cache, last, place)
        log_probs = log_probabilities(logits, last, options)
        if key is None:
            word = log_probs.argmax(-1).astype(jnp.int32)
        else:
            drawn = jax.random.categorical(jax.random.fold_in(key, place), restrict(log_probs, options))
            word = drawn.astype(jnp.int32)
        gained = jnp.take_along_axis(log_probs, word[:, None], axis=1)[:, 0]
        closing = (word == options.end) | (place + 2 == options.length)
        word = jnp.where(ended, options.pad, jnp.where(closing, options.end, word))
        tokens = lax.dynamic_update_slice_in_dim(tokens, word[:, None], place + 1, axis=1)
        log_prob = jnp.where(ended, log_prob, log_prob + gained)
        count = jnp.where(ended | closing, count, count + 1)
        return place + 1, tokens, log_prob, count, cache, ended | closing

    _, tokens, log_prob, count, _, _ = lax.while_loop(going, body, state)
    return {"tokens": tokens, "score": options.score(log_prob, count), "log_prob": log_prob}


def beam_search(step: Step, cache: Cache, batch: int, options: Decoding) -> dict[str, Array]:
    """The best text that beam search finds; the cache has `beams` rows per example, one after the other.

    Each step looks at the best `beams * candidates` continuations in order: those that end are kept among
    the `keep` best ended texts, the first `beams` others go on.
    """
    beams, keep, length = options.beams, options.keep or options.beams, options.length
    tokens = jnp.full((batch, beams, length), options.pad, jnp.int32).at[..., 0].set(options.start)
    sums = jnp.full((batch, beams), NEVER).at[:, 0].set(0.0)  # all beams are alike at first
    ended = jnp.full((batch, keep, length), options.pad, jnp.int32)
    scores, ended_sums = jnp.full((batch, keep), NEVER), jnp.full((batch, keep), NEVER)
    counts, done = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)

    def going(state: tuple) -> Bool[Array, ""]:
        return (state[0] < length - 1) & ~state[-1].all()

    def body(state: tuple) -> tuple:
        place, tokens, sums, ended, scores, ended_sums, counts, cache, done = state
        last = lax.dynamic_index_in_dim(tokens, place, axis=2, keepdims=False).reshape(-1)
        logits, cache = step(cache, last, place)
        log_probs = log_probabilities(logits, last, options).reshape(batch, beams, -1)
        words = log_probs.shape[-1]
        totals = (sums[..., None] + log_probs).reshape(batch, -1)
        totals, chosen = lax.top_k(totals, min(beams * options.candidates, totals.shape[-1]))
        beam, word = chosen // words, (chosen % words).astype(jnp.int32)

        best_possible = options.score(totals[:, 0], length - 1)
        done |= (counts >= keep) & (scores[:, -1] >= best_possible)
        closing = (word == options.end) | (place + 2 == length)
        going_on = (~closing).astype(jnp.int32)
        rank = jnp.cumsum(going_on, axis=1) - going_on  # how many before this one go on
        ends = closing & (rank < beams) & (totals > NEVER / 2) & ~done[:, None]

        texts = jnp.take_along_axis(tokens, beam[..., None], axis=1)
        closed = lax.dynamic_update_slice_in_dim(
            texts, jnp.full_like(texts[..., :1], options.end), place + 1, 2
        )
        new_scores = jnp.where(ends, options.score(totals, place + 1), NEVER)
        scores, order = lax.top_k(jnp.concatenate([scores, new_scores], axis=1), keep)
        ended = jnp.take_along_axis(jnp.concatenate([ended, closed], axis=1), order[..., None], axis=1)
        ended_sums = jnp.take_along_axis(jnp.concatenate([ended_sums, totals], axis=1), order, axis=1)
        counts = jnp.minimum(keep, counts + ends.sum(1))
        done |= (counts >= keep) & options.early_stop

        places = jnp.arange(closing.shape[1])[None]
        on = lax.top_k(jnp.where(closing, -places - closing.shape[1], -places), beams)[1]  # first that go on
        sums = jnp.where(jnp.take_along_axis(closing, on, 1), NEVER, jnp.take_along_axis(totals, on, 1))
        texts, word = jnp.take_along_axis(texts, on[..., None], axis=1), jnp.take_along_axis(word, on, 1)
        tokens = lax.dynamic_update_slice_in_dim(texts, word[..., None], place + 1, axis=2)
        rows = (jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(beam, on, 1)).reshape(-1)
        cache = cache | {"own": jax.tree.map(lambda x: x[rows], cache["own"])}
        return place + 1, tokens, sums, ended, scores, ended_sums, counts, cache, done

    state = (jnp.int32(0), tokens, sums, ended, scores, ended_sums, counts, cache, done)
    _, _, _, ended, scores, ended_sums, _, _, _ = lax.while_loop(going, body, state)
    return {"tokens": ended[:, 0], "score": scores[:, 0], "log_prob": ended_sums[:, 0]}
