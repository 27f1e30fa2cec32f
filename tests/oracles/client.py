"""The openai package as a client: what a server answers it, and what it is refused."""

import json
import sys

from openai import APIStatusError, OpenAI

asked = json.load(sys.stdin)
client = OpenAI(base_url=asked["url"], api_key=asked["token"], max_retries=0)
question = {"messages": asked["messages"], "max_tokens": asked["max_tokens"], "temperature": 0}


def refusal(**other: str) -> int:
    """Return the status that a stranger's key, or a question about another model, is answered with."""
    try:
        client.with_options(api_key=other.get("key", asked["token"])).chat.completions.create(
            model=other.get("model", asked["model"]), **question
        )
    except APIStatusError as error:
        return error.status_code
    return 200


whole = client.chat.completions.create(model=asked["model"], **question)
stream = client.chat.completions.create(model=asked["model"], stream=True, **question)
answer = {
    "models": [model.id for model in client.models.list()],
    "whole": whole.choices[0].message.content,
    "streamed": "".join(part.choices[0].delta.content or "" for part in stream if part.choices),
    "tokens": whole.usage.completion_tokens,
    "continued": client.completions.create(model=asked["model"], prompt="Once", max_tokens=3).choices[0].text,
    "statuses": [refusal(), refusal(key="wrong"), refusal(model="/another/model")],
}
print(json.dumps(answer))
