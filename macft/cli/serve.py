"""`macft serve`: a run's result for programs that speak OpenAI's protocol.

The rule: as in `main`, a command is one call of `macft.api`, and its answer shown.
"""

import sys
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from macft import api
from macft.cli.arguments import AsJson, Positive
from macft.cli.render import narrate
from macft.cli.tables import print_json, print_lines

Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]


def serve(
    name: str,
    /,
    *,
    port: Port = 8080,
    max_tokens: Positive = 512,
    model: str | None = None,
    json: AsJson = False,
) -> None:
    """Serve a run's result to OpenAI-style clients on this machine, until Ctrl-C.

    Args:
        name: A run, a checkpoint (RUN@600), an adapter's folder, or a model.
        port: Where to listen; 8080 when left out, 0 takes a free one.
        max_tokens: Longest reply when a request does not say; 512 when left out.
        model: The base, when the adapter does not name one that is here.
        json: Print URL, token and model as JSON.
    """
    served = api.open_server(name, port=port, model=model, max_tokens=max_tokens)
    if json:
        print_json({"url": served.url, "token": served.token, "model": served.model})
    else:
        print_lines([f"url    {served.url}", f"token  {served.token}", f"model  {served.model}"])
    sys.stdout.flush()  # whoever reads through a pipe waits for it
    narrate("The token is the API key, and is shown this once. Ctrl-C ends.")
    served.run()
