"""Every command of the documents is accounted for and could be started; scripts/doc_check runs them."""

import configparser
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from doc_commands import NOTEBOOKS, PAGES, commands, shell_commands
from doc_rules import RULES, rule_for, small

from lookupjax.config import load_config

FOUND = [command for page in (*PAGES, *NOTEBOOKS) for command in commands(page)]
SHELL = [c for c in FOUND if c.kind == "shell" and not getattr(rule_for(c.page, c.text), "test", "")]


@pytest.fixture(autouse=True)
def at_root(root, monkeypatch):
    monkeypatch.chdir(root)


def test_every_command_is_accounted_for():
    assert len(FOUND) > 150
    for command in FOUND:
        assert small(command.page, command.text, command.kind)
    needed = {id(rule_for(command.page, command.text)) for command in FOUND}
    assert [rule.match for rule in RULES if id(rule) not in needed] == []


def test_what_the_check_would_miss_is_an_error():
    with pytest.raises(LookupError, match="no rule"):
        small("README.md", "python -m lookupjax.unheard_of", "shell")
    with pytest.raises(ValueError, match="is no command"):
        list(shell_commands("page.md", "```\npython -m lookupjax.train\nloss 0.1\n```\n"))


def programs(text: str) -> list[list[str]]:
    """[[program, argument, ...]] of `python ...` commands, without variables set before them."""
    words = [word for word in shlex.split(text) if not re.match(r"[A-Z_]+=", word)]
    return [words[1:]] if words[0] == "python" else []


@pytest.mark.parametrize("command", SHELL, ids=lambda command: command.place)
def test_programs_and_their_flags_exist(command, root):
    for words in programs(small(command.page, command.text, "shell")):
        if words[0] == "-m" and not words[1].startswith("lookupjax."):
            continue
        if words[0] == "-m":
            if words[1] == "lookupjax.NAME":
                continue
            spec = importlib.util.find_spec(words[1])
            assert spec, f"there is no {words[1]}"
            path = Path(spec.origin.replace("__init__", "__main__"))
        else:
            path = root / words[0]
        source = path.read_text() + (root / "lookupjax/training/distributed.py").read_text()
        for flag in words:
            name = flag.partition("=")[0]
            if name.startswith("--") and not name.startswith("--config."):
                assert f'"{name}"' in source, f"{path} has no {name}"


def configs(text: str) -> list[tuple[str, list[str]]]:
    """(config, overrides) of a command that takes a config."""
    words = shlex.split(text)
    chosen = [w.removeprefix("--config=") for w in words if w.startswith("--config=") and "..." not in w]
    return [(config, [w for w in words if re.match(r"--config\.[\w.]+=", w)]) for config in chosen]


@pytest.mark.parametrize(
    "command",
    [c for c in SHELL if "lookupjax.train" in c.text and "extend" not in c.page],  # test_extend.py has those
    ids=lambda command: command.place,
)
def test_configs_and_overrides_exist_as_documented_and_in_small(command):
    for text in (command.text, small(command.page, command.text, "shell")):
        for config, overrides in configs(text.replace(" [--config.key=value ...]", "")):
            assert load_config(config, overrides).model.name


def test_extras_that_are_installed_exist(root):
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    extras = set(setup["options.extras_require"])
    lists = [e for c in FOUND if "pip install" in c.text for e in re.findall(r"\[([\w,]+)\]", c.text)]
    named = {extra for names in lists for extra in names.split(",")}
    assert named and named <= extras


def test_files_that_are_named_exist(root):
    """Paths such as `configs/zoo/ccan.py` in the prose; those in angle brackets are yours to write."""
    rooms = r"`((?:configs|scripts|experiments|benchmarks|tests|lookupjax)/[\w/.*]+)[:`]"
    for page in PAGES:
        for path in re.findall(rooms, (root / page).read_text()):
            assert list(root.glob(path)), f"{page}: there is no {path}"
