"""Errors to one line on stderr and an exit code.

The rule: this is the only place that ends a command. What macft knows is said with its way out and never with a
traceback, unless `--debug` asks for one.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Callable

from cyclopts import CycloptsError, UnknownCommandError, UnusedCliTokensError

from macft.errors import MacftError
from macft.format import clean, one_line

FAILED, USAGE, INTERRUPTED, READER_GONE = 1, 2, 130, 141


def guard(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code, whatever happens in it."""
    try:
        return command()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return READER_GONE
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, exit_code = explain(error)
        print(message, file=sys.stderr)
        return exit_code


def explain(error: Exception) -> tuple[str, int]:
    """Return what to say about an error, and the exit code."""
    match error:
        case MacftError(message=message, exit_code=exit_code):
            # A list of problems names its places itself.
            return clean(str(error) if "\n" in message else f"macft: {error}"), exit_code
        case CycloptsError():
            return clean(f"macft: {_usage(error)}"), USAGE
        case OSError(strerror=str(reason), filename=name):
            return f"macft: {one_line(f'{name}: {reason}' if name else reason)}", FAILED
        case _:
            what = one_line(f"{type(error).__name__}: {error}")
            return f"macft: unexpected {what}; run again with --debug and report it", FAILED


def _usage(error: CycloptsError) -> str:
    command = " ".join(["macft", *(error.command_chain or [])])
    match error:
        case UnknownCommandError() | UnusedCliTokensError():
            tokens, known = error.unused_tokens or [""], _commands(error)
            what = f"unknown command {tokens[0]!r}" if known else f"unexpected argument {tokens[0]!r}"
            near = difflib.get_close_matches(tokens[0], known, n=1)
            said = f"{what}." + (f" Did you mean {near[0]!r}?" if near else "")
        case _:
            said = " ".join(str(error).split())
    return f"{said} `{command} --help` shows how"


def _commands(error: CycloptsError) -> list[str]:
    return [name for name in error.app or () if not name.startswith(("-", "_"))]


def _forget_stdout() -> None:
    # Else Python says at its end that it could not flush.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
