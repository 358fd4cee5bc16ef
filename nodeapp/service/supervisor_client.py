"""Asking supervisord over its Unix socket (XML-RPC); blocking: call through a thread."""

from __future__ import annotations

import contextlib
import http.client
import xmlrpc.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from nodeapp.core.errors import NotFound, Unavailable

BAD_NAME = 10
ALREADY_STARTED = 60
NOT_RUNNING = 70


@dataclass(frozen=True, slots=True)
class ProgramState:
    """What supervisord says of one program; `pid` is 0 when it does not run."""

    name: str
    state: str
    pid: int
    description: str
    exit_status: int


class SupervisorClient:
    """Stateless: a connection a call, because supervisord may restart in between."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def programs(self) -> list[ProgramState]:
        """Every program, in supervisord's order.

        Raises:
            Unavailable: supervisord does not answer.
        """
        with self._server() as server:
            return [
                ProgramState(
                    str(item["name"]),
                    str(item["statename"]),
                    int(item["pid"]),
                    str(item["description"]),
                    int(item["exitstatus"]),
                )
                for item in server.supervisor.getAllProcessInfo()
            ]

    def is_running(self) -> bool:
        """True unless it is shutting down.

        Raises:
            Unavailable: supervisord does not answer.
        """
        with self._server() as server:
            return str(server.supervisor.getState()["statename"]) == "RUNNING"

    def start(self, name: str) -> None:
        """Start a program that is stopped or FATAL; nothing when it runs."""
        with self._server(ALREADY_STARTED) as server:
            server.supervisor.startProcess(name, False)  # noqa: FBT003  # XML-RPC has no keywords

    def kill(self, name: str) -> None:
        """SIGKILL a program; supervisord starts it again. For one that does not answer."""
        with self._server(NOT_RUNNING) as server:
            server.supervisor.signalProcess(name, "KILL")

    def shutdown(self) -> None:
        """Ask for an orderly stop of the whole tree."""
        with self._server() as server:
            server.supervisor.shutdown()

    @contextlib.contextmanager
    def _server(self, *harmless_faults: int) -> Iterator[Any]:
        transport = SupervisorTransport(None, None, f"unix://{self._path}")
        try:
            yield xmlrpc.client.ServerProxy("http://supervisor", transport=transport)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == BAD_NAME:
                raise NotFound(f"supervisord: {fault.faultString}") from fault
            if fault.faultCode not in harmless_faults:
                raise Unavailable(f"supervisord: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise Unavailable(f"supervisord does not answer at {self._path}") from error
        finally:
            transport.close()
