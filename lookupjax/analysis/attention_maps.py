"""Where every block and head of a model looks: all its attention maps, read through the mixers' taps."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lookupjax.analysis.attention_spread import frames_apart, places_apart, unmerged_keys, unmerged_queries
from lookupjax.attention import record_taps
from lookupjax.attention.agent import AgentAttention
from lookupjax.attention.aggregated import AggregatedAttention
from lookupjax.attention.channel import ChannelAttention
from lookupjax.attention.dense import dense_map
from lookupjax.attention.lookup import Gather, Infuse
from lookupjax.attention.pooling.base import Pooling
from lookupjax.attention.rollout import rollout
from lookupjax.errors import UserError
from lookupjax.layers.embed import token_grid
from lookupjax.models.captioner import Captioner
from lookupjax.models.dependencyvit import DependencyViT
from lookupjax.models.tokenlearner import TokenLearnerViT
from lookupjax.models.tome import ToMe
from lookupjax.models.vivit import ViViT

Grid = tuple[int, ...]
KINDS = {  # tap: what its map is called
    "weights": "attention",
    "map": "attention",
    "pooled_weights": "attention to the pooled map",
    "centre_weights": "attention to the centres",
    "agent_weights": "agents gather",
    "broadcast_weights": "tokens read agents",
    "gates": "share of each head",
    "gate": "global gate",
}
PLACES = ("places", "query_places", "key_places", "source")
SETS = (  # (model, path of the mixer, what asks, what answers): tokens that lie on no grid of the image
    ("DynPerceiver", r"x2z/", "latent tokens", ""),
    ("DynPerceiver", r"(last_)?z2x", "", "latent tokens"),
    ("DynPerceiver", r"blocks/", "latent tokens", "latent tokens"),
    ("CCAN", r"condition/", "conditions", ""),
    ("DCAL", r"glca/", "selected tokens", ""),
    ("Probe", r"pool", "queries", ""),
    ("ViT", r"map/", "probe", ""),
    ("ToMe", r"map/", "probe", ""),
    ("TokenLearnerViT", r"learners/", "learned tokens", ""),
    ("TokenLearnerViT", r"fusers/", "", "learned tokens"),
)
GRIDS: dict[str, tuple[Grid, ...]] = {"DynPerceiver": ((7, 7),)}  # that do not follow from the image's size


@dataclass(frozen=True)
class Tokens:
    """One side of a map: `prefix` tokens that have no place (class token, registers), then those of `grid`.

    Without a grid all `count` tokens have no place. A grid of three axes is that of a clip, time first.
    `names` are those of the tokens before the grid, where they are not a class token and registers.
    """

    name: str
    count: int
    prefix: int = 0
    grid: Grid | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttentionMap:
    """The map of one call of one mixer.

    Attributes:
      path: the mixer's place in the model, such as "blocks/3/attn"; the n-th later call is "path/n".
      kind: of `KINDS`, "rollout" or "round trip".
      weights: (b, heads, queries, keys), what of each key goes into each query.
    """

    path: str
    kind: str
    weights: Float[np.ndarray, "b h q k"]
    queries: Tokens
    keys: Tokens


def attention_maps(
    model: nnx.Module, images: Float[Array, "b *size c"], *, derived: bool = True, **call: Any
) -> list[AttentionMap]:
    """All maps in the order of computation, then, with `derived`, the rollouts and round trips.

    Args:
      call: further arguments of the model's call, such as compressed=(3, 3), or the `text` of a captioner.

    Raises:
      UserError: when nothing in the model attends.
    """
    order: list[str] = []
    names = (*KINDS, *PLACES)

    def run(model: nnx.Module, images: Array) -> tuple[Array, ...]:
        _, taps = record_taps(model, images, names=names, **call)
        order[:] = taps
        return tuple(taps.values())

    graphdef, state = nnx.split(model)
    values = jax.jit(lambda state, images: run(nnx.merge(graphdef, state, copy=True), images))(state, images)
    taps = dict(zip(order, map(np.asarray, values)))
    reader = Reader(model, len(images), tuple(images.shape[1:-1]), call)
    maps = [m for key in taps if (m := reader.read(key, taps)) is not None]
    if not maps:
        raise UserError(
            f"{type(model).__name__} has no attention that could be shown: none of its layers weighs tokens"
        )
    if isinstance(model, DependencyViT):
        maps = unpruned(model, images, maps)
    return maps + (rollouts(maps) + round_trips(maps) if derived else [])


@dataclass(frozen=True)
class Reader:
    """Turns taps into maps of a model for a batch of images or clips of `size`."""

    model: nnx.Module
    batch: int
    size: Grid
    call: dict[str, Any]

    @cached_property
    def mixers(self) -> dict[str, nnx.Module]:
        return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(self.model)}

    def read(self, key: str, taps: dict[str, np.ndarray]) -> AttentionMap | None:
        """The map under the tap `key`; None where another tap says the same better, or it is no map."""
        if isinstance(self.model, Captioner):
            return self.of_captioner(self.model, key, taps)
        path, name, number = split_key(key)
        end = f"/{number}" if number else ""

        def tap(other: str) -> np.ndarray | None:
            return taps.get(f"{path}/{other}{end}")

        if name not in KINDS or (name == "weights" and tap("map") is not None):
            return None
        mixer = self.mixers[path]
        weights = taps[key]
        if name == "gate":  # (b, h, w, 1): one weight per position
            weights = weights.reshape(len(weights), 1, 1, -1)
        elif name == "gates":  # (b, n, heads): how much every token uses each head
            weights = weights.swapaxes(1, 2)[:, :, None]
        elif weights.ndim == 3 and isinstance(mixer, Pooling):  # (b, queries, n)
            weights = weights[:, None]
        elif weights.ndim == 3:  # (b, groups, n): one map per group of channels
            weights = weights[:, :, None]
        weights = over_all_tokens(weights, name, tap)
        if isinstance(mixer, Infuse):  # stored as (compressed, lookup); lookup tokens read compressed ones
            weights = weights.swapaxes(2, 3)
        if isinstance(self.model, ToMe):
            weights = self.unmerged(path, weights, merges(taps))
        if len(weights) > self.batch:
            weights = self.over_the_clip(path, weights)
        queries, keys = self.sides(path, name, mixer, weights.shape[2:])
        return AttentionMap(path + end, KINDS[name], weights.astype(np.float32), queries, keys)

    def unmerged(self, path: str, weights: np.ndarray, sources: list[np.ndarray]) -> np.ndarray:
        """A map of ToMe over the tokens as they were before any merging."""
        block = re.match(r"blocks/(\d+)/", path)
        if block is None:  # the pooling behind the last block, which sees no class token
            patches = sources[-1][:, self.model.prefix :, self.model.prefix :]
            return unmerged_keys(weights, patches)
        source = sources[int(block[1])]
        return unmerged_keys(unmerged_queries(weights, source), source)

    def over_the_clip(self, path: str, weights: np.ndarray) -> np.ndarray:
        """A map within single frames, or across them at single places, over all tokens of the clip."""
        lines = len(weights) // self.batch
        if path.endswith("time_attn"):
            return places_apart(weights, lines)
        return frames_apart(weights, lines, int(getattr(self.model, "cls", None) is not None))

    def of_captioner(self, model: Captioner, key: str, taps: dict[str, np.ndarray]) -> AttentionMap | None:
        """The encoder's own map, or what each word's token of the decoder reads of image and text."""
        encoder = replace(self, model=model.encoder)
        inside = {k.removeprefix("encoder/"): v for k, v in taps.items() if k.startswith("encoder/")}
        if key.startswith("encoder/"):
            m = encoder.read(key.removeprefix("encoder/"), inside)
            return None if m is None else replace(m, path=f"encoder/{m.path}")
        path, name, number = split_key(key)
        if name != "weights":
            return None
        weights = taps[key].astype(np.float32)
        words = model.decoder.length if self.call.get("text") is None else self.call["text"].shape[1]
        image = weights.shape[-1] - (0 if path.endswith("cross") else words)
        queries = Tokens("words", words)
        keys = Tokens("words", words) if image == 0 else encoder.encoded(image)
        if image and isinstance(model.encoder, ToMe):
            prefix = model.encoder.prefix
            patches = merges(inside)[-1][:, prefix:, prefix:]
            seen = unmerged_keys(weights[..., :image], patches)
            weights = np.concatenate([seen, weights[..., image:]], axis=-1)
            image = seen.shape[-1]
            keys = encoder.on_image(image)
        if image and not path.endswith("cross"):  # the image stands before the words and sees none of them
            weights = weights[:, :, -words:]
            weights = np.concatenate([weights[..., image:], weights[..., :image]], axis=-1)
            names = tuple(f"word {i + 1}" for i in range(words))
            before = keys.prefix if keys.grid else keys.count
            names += tuple(f"image token {i + 1}" for i in range(before))
            keys = Tokens(f"words and {keys.name}", words + image, words + keys.prefix, keys.grid, names)
        return AttentionMap(path + (f"/{number}" if number else ""), KINDS[name], weights, queries, keys)

    def encoded(self, count: int) -> Tokens:
        """The tokens that `encode` hands on."""
        if isinstance(self.model, TokenLearnerViT) and count == self.model.num_tokens:
            return Tokens("learned tokens", count)
        if self.compressed and count == math.prod(self.compressed):
            return Tokens("compressed tokens", count, 0, self.compressed)
        return self.on_image(count)

    def sides(self, path: str, name: str, mixer: nnx.Module, counts: Sequence[int]) -> tuple[Tokens, Tokens]:
        """What asks and what answers."""
        if isinstance(mixer, ChannelAttention):
            return tuple(Tokens("channels", n) for n in counts)
        if name in ("gate", "gates") or (counts[0] == 1 and not isinstance(mixer, Pooling)):
            asks = "one token" if name == "weights" else "the image"
            return Tokens(asks, counts[0]), self.on_image(counts[1])
        own = [s for s in SETS if s[0] == type(self.model).__name__ and re.match(s[1], path)]
        names = own[0][2:] if own else ("", "")
        if isinstance(self.model, TokenLearnerViT) and path.startswith("blocks/"):
            learned = counts[0] == self.model.num_tokens and int(path.split("/")[1]) >= self.model.loc
            names = ("learned tokens",) * 2 if learned else names
        if path.startswith("temporal/"):  # of the clip's frames
            before = int(self.model.temporal.cls is not None)
            return (Tokens("frames", counts[0], before, (counts[0] - before, 1, 1)),) * 2
        compressed = self.compressed
        sides = []
        for count, given in zip(counts, names):
            if given:
                sides.append(Tokens(given, count))
            elif compressed and count == math.prod(compressed):
                sides.append(Tokens("compressed tokens", count, 0, compressed))
            else:
                sides.append(self.on_image(count))
        if isinstance(mixer, Gather | Infuse):
            side = int(isinstance(mixer, Gather))
            sides[side] = replace(sides[side], name="lookup tokens")
        if isinstance(mixer, AgentAttention) and name in ("agent_weights", "broadcast_weights"):
            agents = Tokens("agents", mixer.side**2, 0, (mixer.side, mixer.side))
            sides[0 if name == "agent_weights" else 1] = agents
        if isinstance(mixer, AggregatedAttention) and name == "pooled_weights" and sides[0].grid:
            grid = tuple(max(n // mixer.sr_ratio, 1) for n in sides[0].grid)
            sides[1] = Tokens("pooled map", counts[1], 0, grid)
        if name == "centre_weights":
            sides[1] = Tokens("centres", counts[1])
        return sides[0], sides[1]

    @property
    def compressed(self) -> Grid | None:
        grid = self.call.get("compressed") or getattr(self.model, "compressed", None)
        if grid is None or not hasattr(self.model, "compressed"):
            return None
        if len(grid) < len(self.size):  # of every frame
            return (self.grids()[0][0], *grid)
        return tuple(grid)

    def on_image(self, count: int) -> Tokens:
        """Tokens on a grid of the image's proportions, behind a class token or registers if they are more."""
        own = getattr(self.model, "prefix", None)
        names: tuple[str, ...] = ()
        if isinstance(self.model, ViViT):
            own = int(self.model.cls is not None)
            if own and self.model.form == "factorised_encoder":
                own = self.grids()[0][0]
                names = tuple(f"class token of frame {i + 1}" for i in range(own))
        for prefix in range(0, 9) if own is None or isinstance(own, bool) else (own, *range(9)):
            for grid in self.grids():
                if prefix + math.prod(grid) == count:
                    return Tokens("tokens", count, prefix, grid, names if prefix == own else ())
        return Tokens("tokens", count)

    def grids(self) -> list[Grid]:
        """Grids that tokens of the image may lie on: those the model names, then one per stride."""
        known = [self.model.grid(self.size)] if isinstance(self.model, ViViT) else []
        known += [tuple(g) for g in getattr(self.model, "grids", ())]
        known += GRIDS.get(type(self.model).__name__, ())
        patch = getattr(self.model, "patch", None)
        patch = (patch,) * len(self.size) if isinstance(patch, int) else patch
        if patch is not None and len(patch) == len(self.size):
            known.append(token_grid(self.size, tuple(patch)))
        strides = range(1, min(self.size) + 1)
        known += [tuple(-(-n // s) for n in self.size) for s in strides]
        known += [tuple(n // s for n in self.size) for s in strides]
        return known


def merges(taps: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ToMe's tokens held before each block and after the last one: (b, t, n)."""
    return [value for key, value in taps.items() if split_key(key)[1] == "source"]


def split_key(key: str) -> tuple[str, str, str]:
    """(path, tap, number of the later call or "") of "blocks/0/attn/weights/2"."""
    parts = key.split("/")
    number = parts.pop() if parts[-1].isdigit() else ""
    return "/".join(parts[:-1]), parts[-1], number


def over_all_tokens(weights: np.ndarray, name: str, tap) -> np.ndarray:
    """Weights within windows over all tokens; a query that stands in several windows gets their mean."""
    queries, keys = tap("query_places"), tap("key_places")
    if tap("places") is not None:
        queries = keys = tap("places")
    if queries is None or name not in ("weights", "centre_weights"):
        return weights
    if name == "centre_weights":
        centres = np.arange(1.0, 1 + weights.shape[-1], dtype=np.float32)
        keys = np.broadcast_to(centres, (*keys.shape[:2], len(centres)))
    size = int(queries.max()), int(keys.max())
    full = np.asarray(dense_map(jnp.asarray(weights), jnp.asarray(queries), jnp.asarray(keys), size))
    times = np.bincount(queries[0].astype(int).ravel(), minlength=size[0] + 1)[1:]
    return full / np.maximum(times, 1)[None, None, :, None]


def unpruned(model: DependencyViT, images: Array, maps: list[AttentionMap]) -> list[AttentionMap]:
    """The maps of layers behind a pruning over all patches again; what left sends and receives nothing."""
    _, layers = jax.jit(model.run)(images)
    count = layers[0].mask.shape[-1]
    full = []
    for m, layer in zip(maps, layers):
        place = np.asarray(layer.place)
        weights = np.zeros((*m.weights.shape[:2], count, count), np.float32)
        for example, at in enumerate(place):
            weights[example][:, at[:, None], at[None]] = m.weights[example]
        full.append(AttentionMap(m.path, m.kind, weights, maps[0].queries, maps[0].keys))
    return full


def mixes_itself(m: AttentionMap) -> bool:
    """Whether the map leads from a set of tokens to itself and its rows sum to one."""
    return m.queries == m.keys and m.kind == "attention" and np.allclose(m.weights.sum(-1), 1.0, atol=1e-3)


def rollouts(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """Attention rollout of every run of at least two blocks over the same tokens, where it is defined.

    That is where all rows of all maps sum to one. The blocks of a run differ in one number of their paths.
    """
    runs: dict[tuple[str, Tokens], list[AttentionMap]] = {}
    for m in maps:
        if mixes_itself(m) and m.queries.name != "channels":
            runs.setdefault((re.sub(r"\d+(?=/[^/\d]+$)", "*", m.path), m.queries), []).append(m)
    return [
        AttentionMap(
            path,
            f"rollout of {len(run)} blocks",
            np.asarray(rollout([jnp.asarray(m.weights.mean(1)) for m in run]))[:, None],
            tokens,
            tokens,
        )
        for (path, tokens), run in runs.items()
        if len(run) > 1
    ]


def round_trips(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """Lookup -> compressed -> lookup: W^T A of each LookupViT block, head by head.

    Row i says from which lookup tokens the compressed tokens that write to i have gathered.
    """
    by_path = {m.path: m for m in maps}
    trips = []
    for path, gathered in by_path.items():
        written = by_path.get(re.sub(r"gather(/\d+)?$", r"infuse\1", path))
        if written is not None and written is not gathered:
            trip = np.einsum("bhnm,bhmk->bhnk", written.weights, gathered.weights)
            where = re.sub(r"/?gather", "", path)
            trips.append(AttentionMap(where, "round trip", trip, written.queries, gathered.keys))
    return trips
