"""The command line: ``renorm VERB``; one file a verb, which parses, calls and prints."""

import sys
from collections.abc import Sequence

from renorm.errors import MissingExtraError, RenormError

EXTRA = ("cyclopts", "rich", "sklearn", "scipy")
DONE, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    A user's mistake is a message on stderr; only a defect of this package is a traceback.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        0 done, 1 some runs failed or the doctor has findings, 2 a mistake in what was asked, 130
        interrupted.
    """
    try:
        return _dispatch(sys.argv[1:] if arguments is None else arguments)
    except RenormError as error:
        sys.stderr.write(f"renorm: {error}\n")
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("renorm: interrupted\n")
        return INTERRUPTED


def _dispatch(arguments: Sequence[str]) -> int:
    try:
        from renorm.cli.application import dispatch
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
        raise MissingExtraError(
            f'The command line needs {name}, which is not installed. Run: pip install "renorm[lab]"'
        ) from error
    return dispatch(arguments)
