"""Leaves of a pytree by name: "blocks/0/attn/q/kernel"."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

from lookupjax.errors import UserError, nearest


def path_name(keys: tuple) -> str:
    """Joins a key path of jax.tree_util with slashes: dict keys, indices and attributes alike."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def named_leaves(tree: Any) -> dict[str, Any]:
    """{name: leaf}, in the tree's order."""
    return {path_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of fn(name, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: fn(path_name(keys), leaf), tree)


def check_patterns(patterns: Iterable[str], names: Iterable[str], purpose: str) -> None:
    """Raises UserError for a pattern (regular expression, searched) that matches none of `names`."""
    names = list(names)
    for pattern in patterns:
        try:
            matched = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f"{purpose}: {pattern!r} is not a regular expression: {error}") from None
        if not matched:
            raise UserError(f"{purpose}: {pattern!r} matches no parameter{nearest(pattern, names)}")
