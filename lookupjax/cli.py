"""What every entry point shares: errors as one sentence, and reading shapes from the command line."""

import sys
from collections.abc import Callable

from lookupjax.errors import UserError


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main(arguments)` and exits with its status; a UserError prints its message and exits with 2."""
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def parse_grid(text: str) -> tuple[int, ...]:
    """"3x3" -> (3, 3).

    Raises:
      UserError: for anything else.
    """
    try:
        grid = tuple(int(n) for n in text.lower().split("x"))
    except ValueError:
        grid = ()
    if not grid or any(n < 1 for n in grid):
        raise UserError(f"{text!r} is not a grid; write the lengths with an x, such as 3x3 or 8x5x5")
    return grid


def format_grid(grid: tuple[int, ...]) -> str:
    """(3, 3) -> "3x3"."""
    return "x".join(map(str, grid))
