"""The rooms of the house: lower ones never import upper ones, and every name is one that there is."""

import ast
import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import lookupjax

PACKAGE = Path(lookupjax.__file__).parent
# What each room may import beside itself and the small modules below all rooms.
MAY_IMPORT = {
    "layers": set(),
    "attention": {"layers"},
    "models": {"layers", "attention", "analysis"},  # models/__main__ prints what analysis counts
    "tasks": {"layers", "attention", "models"},
    "data": set(),
    "training": {"layers", "attention", "models", "tasks", "data", "evaluation", "interop"},
    "evaluation": {"layers", "attention", "models", "tasks", "data", "training", "analysis"},  # its plots
    "interop": {"layers", "attention", "models", "tasks", "evaluation", "analysis"},
    "analysis": {"layers", "attention", "models"},
}
BASE = {"errors", "files", "paths", "grids", "cli", "config"}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("lookupjax.")}
    return rooms


def test_imports_go_downwards():
    wrong = []
    for room, allowed in MAY_IMPORT.items():
        for path in (PACKAGE / room).rglob("*.py"):
            for other in imported_rooms(path) - allowed - BASE - {room}:
                if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists():
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(MAY_IMPORT)


def undefined(source: str) -> set[str]:
    """Names that are read but neither assigned, imported nor built in: jaxtyping keeps linters off them."""

    def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
        yield table
        for child in table.get_children():
            yield from scopes(child)

    module, *inner = scopes(symtable.symtable(source, "", "exec"))
    known = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    known |= {s.get_name() for t in inner for s in t.get_symbols() if s.is_declared_global()}
    read = {s.get_name() for s in module.get_symbols() if s.is_referenced()}
    read |= {s.get_name() for t in inner for s in t.get_symbols() if s.is_global() and s.is_referenced()}
    return read - known - set(dir(builtins)) - {"__file__", "__path__"}


def test_every_name_is_defined():
    assert undefined("def f(x):\n    return [f'{own} {y}' for y in x if len(x)]") == {"own"}
    found = {}
    for room in ("lookupjax", "configs", "experiments", "benchmarks", "scripts"):
        for path in (PACKAGE.parent / room).rglob("*.py"):
            if names := undefined(path.read_text()):
                found[str(path)] = names
    assert found == {}
