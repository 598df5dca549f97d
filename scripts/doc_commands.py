"""What the documents say that can be checked: their commands, their Python blocks and their links."""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
)
NOTEBOOKS = tuple(sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.ipynb")))
FENCE = re.compile(r"^( *)```+ *([\w{}]*)$")
PROGRAM = re.compile(r"(\w+=\S+ )*(python|pip|scripts/|experiments/)")  # what a command starts with
INLINE = re.compile(r"`((?:python|pip|scripts/)[^`]*)`")
OUTPUT = ("text", "console")  # blocks whose commands stand behind "$ ", everything else is output


@dataclass(frozen=True)
class Command:
    """A command of a page, or a Python block."""

    page: str
    line: int
    kind: str  # "shell" or "python"
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, language, content) of every fenced block."""
    inside, start, language, indent = False, 0, "", ""
    content: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if match and not inside:
            inside, start, content = True, number, []
            indent, language = match.groups()
        elif match and inside:
            inside = False
            yield start, language, textwrap.dedent("\n".join(content))
        elif inside:
            content.append(line.removeprefix(indent))


def prose(text: str) -> str:
    """The text with its fenced blocks blanked, line by line."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = bool(FENCE.match(line))
        lines.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(lines)


def joined(content: str) -> Iterator[tuple[int, str]]:
    """(offset, line) with lines that end in a backslash continued."""
    whole, start = "", 0
    for offset, line in enumerate(content.splitlines()):
        start = start if whole else offset
        whole += line.strip() if whole else line
        if whole.endswith("\\"):
            whole = whole[:-1]
            continue
        yield start, whole
        whole = ""


def without_comment(line: str) -> str:
    return re.sub(r"\s+# .*$|^# .*$", "", line).strip()


def shell_commands(page: str, text: str) -> Iterator[Command]:
    """Commands of blocks without a language (every line of them is one), and those behind "$ ".

    Raises:
      ValueError: for a line of such a block that is no command; output belongs into a block of "text".
    """
    for start, language, content in blocks(text):
        if language not in ("", *OUTPUT):
            continue
        dollars = language in OUTPUT or content.startswith("$ ")
        for offset, line in joined(content):
            if dollars and not line.startswith("$ "):
                continue
            command, line_number = without_comment(line.removeprefix("$ ")), start + 1 + offset
            if not command:
                continue
            if not PROGRAM.match(command):
                raise ValueError(
                    f"{page}:{line_number}: {command!r} is no command; mark output and files as ```text"
                )
            yield Command(page, line_number, "shell", command)


def commands(page: str) -> list[Command]:
    """Everything on a page that can be run, in its order; the code of a notebook as one block."""
    text = (ROOT / page).read_text()
    if page.endswith(".ipynb"):
        code = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        return [Command(page, 1, "python", "\n\n\n".join(code))]
    found = list(shell_commands(page, text))
    found += [
        Command(page, start + 1, "python", content)
        for start, language, content in blocks(text)
        if language == "python"
    ]
    plain = prose(text)
    for match in INLINE.finditer(plain):
        line = plain.count("\n", 0, match.start()) + 1
        found.append(Command(page, line, "shell", " ".join(match[1].split())))
    return sorted(found, key=lambda command: command.line)


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives to the headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(text), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).strip().replace(" ", "-") for h in headings]
    return {slug if not n else f"{slug}-{n}" for i, slug in enumerate(slugs) for n in [slugs[:i].count(slug)]}


def broken_links(page: str) -> list[str]:
    """Relative links and pictures of a page whose file or anchor does not exist."""
    path = ROOT / page
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = path if not file else path.parent / file
        if not other.exists():
            broken.append(f"{page}: {target} does not exist")
        elif anchor and anchor not in anchors(other.read_text()):
            broken.append(f"{page}: {other.name} has no heading #{anchor}")
    return broken
