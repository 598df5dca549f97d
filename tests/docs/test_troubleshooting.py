"""The messages that the documents quote are the program's own."""

import ast
import importlib
import itertools
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from doc_commands import blocks
from PIL import Image

from lookupjax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
BEFORE = "error: "


def quoted(page: str) -> list[str]:
    return [c for _, language, c in blocks((ROOT / page).read_text()) if language == "text"]


def provoked() -> list[tuple[str, str]]:
    """(command, message) of the blocks with "$ "."""
    shown = [*quoted("docs/troubleshooting.md"), *quoted("docs/configs.md")]
    lines = [line for block in shown for line in block.splitlines()]
    pairs = itertools.pairwise(lines)
    return [(c.removeprefix("$ "), m.removeprefix(BEFORE)) for c, m in pairs if c.startswith("$ ")]


def alone() -> list[str]:
    """Messages without a command."""
    return [line for b in quoted("docs/troubleshooting.md") if "$ " not in b for line in b.splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("command, message", provoked(), ids=lambda text: text[:60])
def test_the_command_ends_with_the_message(command, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LOOKUPJAX_DATA", data)
    monkeypatch.setattr("lookupjax.training.distributed.start", lambda args: None)  # jax has started here
    monkeypatch.setattr("lookupjax.train.use_compilation_cache", lambda: None)
    image = tmp_path / "IMAGE.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    workdir = str(tmp_path / "W")
    words = [re.sub(r"(?<==)W$", workdir, word) for word in shlex.split(command)]
    words = [str(image) if word == "IMAGE.png" else word for word in words]
    assert words[:2] == ["python", "-m"]
    with pytest.raises(UserError) as raised:
        importlib.import_module(words[2]).main(words[3:])
    expected = re.escape(message).replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, str(raised.value), re.DOTALL)


def pattern(node: ast.expr) -> str:
    """A regular expression of what an expression of texts can be."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(map(pattern, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return pattern(node.left) + pattern(node.right)
    return ".*"


@cache
def messages() -> set[str]:
    """Patterns of every UserError of the package, and of their first lines."""
    found = set()
    for path in (ROOT / "lookupjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
                text = pattern(node.args[0])
                found |= {text, text.partition("\\\n")[0]}
    return {text for text in found if len(text.replace(".*", "")) > 15}


@pytest.mark.parametrize("message", alone(), ids=lambda text: text[:60])
def test_the_message_is_in_the_code(message):
    assert any(re.fullmatch(text, message, re.DOTALL) for text in messages())


def test_an_invented_message_would_be_found_out():
    assert not any(re.fullmatch(text, "W has no checkpoint; go fishing", re.DOTALL) for text in messages())
    assert len(provoked()) > 15 and len(alone()) > 15
