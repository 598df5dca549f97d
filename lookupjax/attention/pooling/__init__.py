"""Attentive pooling: many tokens (b, n, d) into one vector (b, width), the heads of frozen-encoder probing.

EP and the poolings it is compared with (arXiv 2506.10178; reference billpsomas/efficient-probing). Every
one is built as `create_pooling(name, dim, ...)` and called as `pool(tokens, grid=None, rngs=None)`.
Defaults are those of the reference's harness; `models/probe.py` puts them on a backbone.
"""

from typing import Any

from flax import nnx

from lookupjax.attention.pooling import blocks, convolutional, queries
from lookupjax.attention.pooling.base import Pooling
from lookupjax.attention.pooling.ep import EfficientProbing
from lookupjax.errors import UserError, nearest

POOLINGS: dict[str, Any] = {
    "token": queries.Token,
    "gap": queries.Mean,
    "ep": EfficientProbing,
    "abmilp": blocks.Abmilp,
    "simpool": queries.SimPool,
    "esimpool": queries.ESimPool,
    "aim": queries.Aim,
    "clip": queries.Clip,
    "siglip": blocks.SigLip,
    "coca": queries.CoCa,
    "cait": blocks.CaiT,
    "dinovit": blocks.DinoVit,
    "jepa": blocks.Jepa,
    "dolg": convolutional.Dolg,
    "cbam": convolutional.Cbam,
    "cae": queries.Cae,
    "vitmhca": queries.VitMhca,
}


def create_pooling(name: str, dim: int, *, rngs: nnx.Rngs, **options) -> Pooling:
    """Builds the pooling called `name` over tokens of width `dim`.

    Raises:
      UserError: when there is no such pooling.
    """
    if name not in POOLINGS:
        raise UserError(f"there is no pooling {name!r}{nearest(name, POOLINGS)}; there are {list(POOLINGS)}")
    return POOLINGS[name](dim, rngs=rngs, **options)
