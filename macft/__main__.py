"""The entry of `macft` and `python -m macft`.

The rule: what must be settled before MLX or a Hugging Face library is imported is settled here; the rest is the command
line's.
"""

import os
import signal
import sys
from collections.abc import MutableMapping, Sequence

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    """Run a command and exit with its code."""
    # While modules load, Ctrl-C ends the process at once: an exception could be lost in an import, or print its frames.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from macft.machine import reexec_with_openblas

    prepare_environment(sys.argv[1:], os.environ)
    if notice := reexec_with_openblas([sys.executable, *sys.orig_argv[1:]], os.environ):
        print(notice, file=sys.stderr)
    if opens_studio(sys.argv[1:], is_terminal=sys.stdin.isatty() and sys.stdout.isatty()):
        os.execv(sys.executable, [sys.executable, "-P", "-m", "tui"])
    from macft.cli.main import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(run(sys.argv[1:]))


def opens_studio(arguments: Sequence[str], *, is_terminal: bool) -> bool:
    """Return whether this is the studio's to answer: `macft` alone, on a terminal."""
    return not arguments and is_terminal


def prepare_environment(arguments: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Take the Hugging Face libraries offline, unless the command is `pull`, and silence their telemetry."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command != "pull":
        environ.update(OFFLINE)
    for name, value in QUIET.items():
        environ.setdefault(name, value)


if __name__ == "__main__":
    main()
