"""What the tests ask by the official OpenAI client, and by plain HTTP where that refuses to."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one word."}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def ask(client, **more):
    given = {"model": "default", "messages": [QUESTION], "temperature": 0, "max_tokens": 12} | more
    return client.chat.completions.create(**given)


def post(url, path, body):
    """(status, decoded body, headers), whatever the status."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers
