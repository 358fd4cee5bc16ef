"""structlog set-up: JSON for machines, colours for a terminal; one processor redacts secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from nodeapp.service.settings import NodeSettings

REDACTED_FIELDS = frozenset(
    {
        "prompt",
        "messages",
        "answer",
        "text",
        "password",
        "private_key",
        "secret",
        "signature",
        "raw",
    }
)
_LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Blank the fields that must never reach a log."""
    for name in REDACTED_FIELDS & event.keys():
        event[name] = "[redacted]"
    return event


def configure_logs(process: str, node: NodeSettings) -> None:
    """Point structlog at stderr in the chosen form; call once, from main.py."""
    use_console = node.log_format == "console" or (
        node.log_format == "auto" and sys.stderr.isatty()
    )
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if use_console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[node.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    # Libraries that log through the standard module are told apart by level only.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that carries the module's name."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
