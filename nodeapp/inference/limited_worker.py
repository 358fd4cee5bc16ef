"""Child process that renders chat templates and tries grammars; its parent ends it when slow.

A template is code from a model file: Jinja's sandbox stops it from reaching Python, but neither
an endless loop nor `"x" * 10**10`. A JSON schema comes from a renter and is compiled by native
code. What goes wrong ends this process only: address space, file size and processes are limited
here, time by the parent. Run as a plain file in isolated mode, so it imports nothing but the
standard library, Jinja and llguidance. Frames: length (4 bytes, big endian), JSON. The first one is
an empty reply, after the module that its parent names was imported.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import resource
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from jinja2 import Environment

ADDRESS_SPACE_BYTES = 512 << 20
_PR_SET_PDEATHSIG = 1


class _Refused(Exception):
    """The template called raise_exception or wrote more than it may."""


def main() -> None:
    """Answer requests from stdin on stdout until the end of stdin."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from jinja2 import TemplateError

    importlib.import_module(sys.argv[1])
    _limit()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    _write(target, {})
    while request := _read(source):
        try:
            if "grammar" in request:
                reply: dict[str, str] = {"error": _try_grammar(request)}
            else:
                reply = {"text": _render(request)}
        except (
            TemplateError,
            _Refused,
            TypeError,
            ValueError,
            LookupError,
            OverflowError,
        ) as error:
            reply = {"error": str(error)[:200] or type(error).__name__}
        except (ArithmeticError, AttributeError, RecursionError, MemoryError) as error:
            reply = {"error": type(error).__name__}
        _write(target, reply)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _read(source: BinaryIO) -> dict[str, Any]:
    header = source.read(4)
    if len(header) < 4:
        return {}
    request: dict[str, Any] = json.loads(source.read(int.from_bytes(header, "big")))
    return request


def _write(target: BinaryIO, reply: dict[str, str]) -> None:
    body = json.dumps(reply).encode()
    target.write(len(body).to_bytes(4, "big") + body)
    target.flush()


def _try_grammar(request: dict[str, Any]) -> str:
    """Compile and compute a first mask, over bytes as tokens; "" or what is wrong."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    limits = LLParserLimits(**request["limits"])
    matcher = LLMatcher(LLTokenizer("byte"), request["grammar"], log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error() if matcher.is_error() else ""


_templates: dict[str, Any] = {}


def _render(request: dict[str, Any]) -> str:
    template = _templates.get(request["template"])
    if template is None:
        template = _environment().from_string(request["template"])
        _templates.clear()
        _templates[request["template"]] = template
    limit = int(request["max_characters"])
    pieces: list[str] = []
    for piece in template.generate(**request["values"]):
        limit -= len(piece)
        if limit < 0:
            raise _Refused(f"output is over {request['max_characters']} characters")
        pieces.append(piece)
    return "".join(pieces)


def _environment() -> Environment:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: object = None,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: object = None,
) -> str:
    """With the parameters that templates were written for.

    Everything but ASCII escaped would hide the marks of defused control texts, so it never is.
    """
    del ensure_ascii
    return json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  # templates tell the local date


def _raise(message: object) -> NoReturn:
    raise _Refused(str(message))


if __name__ == "__main__":
    main()
