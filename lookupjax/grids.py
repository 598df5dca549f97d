"""Token grids as text: "3x3", "8x5x5"."""

from lookupjax.errors import UserError


def parse_grid(text: str) -> tuple[int, ...]:
    """ "3x3" -> (3, 3).

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
