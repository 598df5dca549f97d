"""Dependency trees are trees, by hand and of models with and without pruning."""

import jax
import numpy as np
import pytest

from lookupjax import create_model
from lookupjax.analysis.dependency import Tree, dependency_tree, parts
from lookupjax.analysis.tree_plots import dependency_trees
from lookupjax.models.dependencyvit import Layer


def layer(mask, messages):
    return Layer(np.array([mask], np.float32), np.array([messages], np.float32), np.arange(4)[None], None)


def test_by_hand():
    """Tokens 2 and 3 are done first: 3 sent most to 2, which does not go on, so to 1; then 1 joins 0."""
    first = np.zeros((4, 4))
    first[0, 2], first[1, 3], first[2, 3] = 0.5, 0.2, 0.7  # (receiver, sender)
    second = np.zeros((4, 4))
    second[0, 1] = 0.1
    tree = dependency_tree([layer(first, [0.9, 0.8, 0.2, 0.1]), layer(second, [0.6, 0.5, 0.1, 0.1])], 0)
    assert tree.parent.tolist() == [-1, 0, 0, 1] and tree.level.tolist() == [3, 2, 1, 1]
    assert parts(tree, 2).tolist() == [0, 1, 0, 1] and parts(tree, 1).tolist() == [0] * 4


@pytest.mark.parametrize("options", [{}, dict(prune_layers=(2, 3), prune_ratio=0.3)], ids=["full", "lite"])
def test_every_patch_reaches_one_root(options, tmp_path):
    model = create_model("dependencyvit_mu", depth=3, **options)
    images = jax.random.normal(jax.random.key(0), (2, 32, 40, 3))
    tokens, layers = jax.jit(model.run)(images)
    trees = [dependency_tree(layers, i) for i in range(2)]
    for tree in trees:
        assert (tree.parent < 0).sum() == 1
        children = np.flatnonzero(tree.parent >= 0)
        assert (tree.level[tree.parent[children]] > tree.level[children]).all()  # hence no circles
        assert len(np.unique(parts(tree, 4))) <= 4 and parts(tree, 4).min() == 0
    if options:
        pruned = np.setdiff1d(np.arange(20), tokens.place[0])
        assert (trees[0].level[pruned] <= 3).all() and trees[0].parent[pruned].min() >= 0
    path = tmp_path / "tree.png"
    dependency_trees(np.asarray(images), ["a", "b"], trees, (4, 5), path)
    assert path.stat().st_size > 20_000


def test_parts_are_numbered_by_size():
    tree = Tree(np.array([-1, 0, 1, 1, 0]), np.array([3, 2, 1, 1, 1]))
    assert parts(tree, 2).tolist() == [1, 0, 0, 0, 1]
