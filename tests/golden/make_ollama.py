"""Make what Go's own text/template, which Ollama renders with, says of the templates that macft writes.

Made with Go 1.19.8. It runs in macft's environment, with `go` on the path: python -m tests.golden.make_ollama

The rule: the template's text is macft's, what it renders to is Go's; a test holds both against the chat templates.
"""

import json
import subprocess

from macft.models.export.chat_format import write_ollama_template
from tests.golden import HERE
from tests.models.export.conversations import NAMES, conversations, find_format

FOLDER = HERE / "ollama"


def main() -> None:
    questions = {}
    for name in NAMES:
        if form := find_format(name):
            turns = [[{"Role": role, "Content": text} for role, text in turns] for turns in conversations(form)]
            questions[name] = {"Template": write_ollama_template(form, adds_bos=False), "Conversations": turns}
    done = subprocess.run(
        ["go", "run", FOLDER / "render.go"], input=json.dumps(questions), capture_output=True, text=True, check=True
    )
    rendered = json.loads(done.stdout)
    told = {name: {"template": asked["Template"], "rendered": rendered[name]} for name, asked in questions.items()}
    (FOLDER / "templates.json").write_text(json.dumps(told, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
