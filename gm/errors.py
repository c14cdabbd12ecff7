"""What goes wrong, told in one line: the errors of this suite and the doors that print them."""

import errno
import sys
import traceback
from collections.abc import Callable, Sequence

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class SuiteError(Exception):
    """Something the user can mend. The message is one line: the thing that is wrong, then the remedy."""

    exit_code = EXIT_FAILURE


class UsageError(SuiteError):
    """A wrong flag, value or combination of flags."""

    exit_code = EXIT_USAGE


def os_error_reason(error: OSError) -> tuple[str, str]:
    """What an error of the operating system is, and the remedy where one is known, else ""."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk{where}", "free some"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission{where}", "choose a folder you may write to, or change its rights"
    if error.errno == errno.EISDIR:
        return f"a folder, not a file{where}", "name a file"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"a file is in the way{where}", "choose another place"
    if error.errno == errno.ENOENT:
        return f"no such file or folder{where}", ""
    return f"{error.strerror or error}{where}", ""


def explain_os_error(error: OSError) -> str:
    """One line for an error of the operating system, with a remedy where one is known."""
    reason, remedy = os_error_reason(error)
    if error.errno == errno.ENOSPC:
        remedy += " and run the same command again"
    return f"{reason}: {remedy}" if remedy else reason


def explain(error: BaseException) -> tuple[str, int]:
    """The one line for an error, and the exit code that goes with it."""
    if isinstance(error, SuiteError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return explain_os_error(error), EXIT_FAILURE
    if isinstance(error, MemoryError):
        return "out of memory: lower --per_batch_size or the resolution", EXIT_FAILURE
    return "interrupted: run the same command again to go on", EXIT_INTERRUPTED


def run_door(main: Callable[[list[str]], int | None], arguments: Sequence[str] | None = None) -> None:
    """Run ``main(arguments)`` and leave the process: errors become one line on stderr and an exit code.

    Exit codes: 0 done, 2 usage, 1 any other failure, 130 interrupted. ``--debug`` anywhere on the command line shows
    the traceback as well.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = main(arguments) or 0
    except (KeyboardInterrupt, SuiteError, MemoryError, OSError) as error:
        message, code = explain(error)
        if debug:
            traceback.print_exception(error)
    else:
        sys.exit(code)
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
