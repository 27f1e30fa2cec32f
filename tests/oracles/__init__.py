"""Other people's programs, in an environment of their own, asked over a pipe.

The rule: macft's environment never gets their packages. What an oracle answers is compared in a test marked `long`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

PACKAGES = {
    "llamacpp": ["llama-cpp-python"],
    "hugging": ["torch", "transformers", "peft"],
    "client": ["openai"],
}
"""What each environment needs; llama.cpp is compiled, which takes some ten minutes on two cores."""


def ask(oracle: str, question: dict[str, Any]) -> Any:
    """Ask an oracle a question and return its answer.

    Args:
        oracle: Of `PACKAGES`; its script lies beside this file.
        question: Handed to the script as JSON on its stdin.
    """
    environment = {key: value for key, value in os.environ.items() if key not in {"LD_PRELOAD", "PYTHONPATH"}}
    done = subprocess.run(
        [python_of(oracle), Path(__file__).parent / f"{oracle}.py"],
        input=json.dumps(question),
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def python_of(oracle: str) -> Path:
    """Return an environment's Python, made on first use; `MACFT_ORACLES` names a ready one that has all packages."""
    if ready := os.environ.get("MACFT_ORACLES"):
        return Path(ready)
    folder = REPOSITORY / ".cache" / "oracles" / oracle
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[oracle]], check=True)
        (folder / "ready").touch()
    return python
