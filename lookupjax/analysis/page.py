"""The frame of every HTML page: one file, no network, light and dark, wide and narrow screens."""

import html
from collections.abc import Sequence
from pathlib import Path

STYLE = (Path(__file__).parent / "page.css").read_text()


class Markup(str):
    """A table's cell that is HTML already."""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page; `title` is text, `body` and the further `style` are not escaped."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}{style}</style>\n{body}</html>\n"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls in a box of its own. Cells are text, or `Markup`."""

    def cell(text: str) -> str:
        return text if isinstance(text, Markup) else html.escape(text)

    head = "".join(f"<th>{cell(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    opening = f'<table class="{kind}">' if kind else "<table>"
    return (
        f'<div class="scroll" tabindex="0">{opening}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def folded(title: str, body: str, is_open: bool = False) -> str:
    return f"<details{' open' * is_open}><summary>{html.escape(title)}</summary>\n{body}</details>\n"


def sentence(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"
