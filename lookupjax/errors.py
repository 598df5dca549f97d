"""Errors that a user can cause and mend: one sentence that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong input. Entry points print its message alone, without a traceback, and exit with 2."""


class Unreadable(ValueError):
    """A record whose content is damaged, found out while it is decoded: the loader leaves it out."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the known name closest to `name`, or '' when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
