"""The dependency tree that a DependencyViT grows over its patches (arXiv 2304.03282, sections 3.2 and 4.4).

The paper describes the tree and publishes no code for it; this is our construction. All tokens start as
nodes. Layer by layer the nodes with the least message left are done: each of them becomes a child of the
node that received most of what it sent in this layer, among the nodes that go on. Early layers so link
leaves to parts, late ones parts to objects; one node is left, the root. Every layer keeps the same share of
the nodes; where the model prunes, the pruned ones are done as well.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lookupjax.models.dependencyvit import Layer


class Tree(NamedTuple):
    """A tree over n patches in raster order.

    Attributes:
      parent: of each patch; -1 for the root.
      level: the layer (from 1) that made the patch a child; the root has one more than the last.
    """

    parent: Int[np.ndarray, "n"]
    level: Int[np.ndarray, "n"]


def dependency_tree(layers: Sequence[Layer], example: int) -> Tree:
    """The tree of one example of a batch, from what `DependencyViT.run` returns."""
    count, depth = layers[0].mask.shape[-1], len(layers)
    parent, level = np.full(count, -1), np.full(count, depth + 1)
    alive = np.ones(count, bool)
    for number, layer in enumerate(layers, start=1):
        mask, messages, place = (np.asarray(v[example]) for v in layer[:3])
        going_on = alive.copy()
        if number < depth:  # a token that is pruned here is nobody's parent
            going_on &= np.isin(np.arange(count), np.asarray(layers[number].place[example]))
        nodes, candidates = np.flatnonzero(alive[place]), np.flatnonzero(going_on[place])
        goal = math.ceil(count ** (1 - number / depth) - 1e-9)
        stays = candidates[np.argsort(-messages[candidates], kind="stable")][:goal]
        done = np.setdiff1d(nodes, stays)
        if len(stays) and len(done):
            parent[place[done]] = place[stays[mask[np.ix_(stays, done)].argmax(0)]]
            level[place[done]], alive[place[done]] = number, False
    return Tree(parent, level)


def parts(tree: Tree, count: int) -> Int[np.ndarray, "n"]:
    """The subtrees below the (at most `count`) nodes that live longest, as numbers from 0, largest first.

    A patch belongs to the nearest of these nodes on its way to the root.
    """
    thresholds = [level for level in np.unique(tree.level) if (tree.level >= level).sum() <= count]
    heads = tree.level >= min(thresholds)
    owner = np.arange(len(tree.parent))
    while not heads[owner].all():
        owner = np.where(heads[owner], owner, tree.parent[owner])
    names, number, sizes = np.unique(owner, return_inverse=True, return_counts=True)
    rank = np.empty(len(names), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(names))
    return rank[number]
