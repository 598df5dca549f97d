"""What every entry point shares: errors as one sentence and exit codes."""

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
