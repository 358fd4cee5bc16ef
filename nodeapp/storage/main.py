"""The s5 process: composition root of the embedded portal.

    python -m nodeapp.storage.main [--config FILE] [--set section.key=value …]

Two faces: the process's Unix socket takes uploads (same user only), a TCP socket serves blobs
to renters, read-only. The TCP address as bound is written to `<run_dir>/s5.url`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from nodeapp import __version__
from nodeapp.core.errors import Unavailable
from nodeapp.s5.blobs import BlobStore, open_blob_store
from nodeapp.s5.portal import public_app
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import Shell, run_service
from nodeapp.service.settings import StorageSettings
from nodeapp.storage.api import StorageApi
from nodeapp.store.atomic import write_whole

URL_FILE = "s5.url"


class StorageProcess:
    """Blob store, upload API and public portal put together."""

    def __init__(self, shell: Shell, settings: StorageSettings) -> None:
        self._shell = shell
        self._settings = settings
        self._api = StorageApi()
        self._runner: web.AppRunner | None = None
        self._url = ""
        self._used = shell.metrics.gauge("used_bytes", "bytes of all blobs")

    def routes(self) -> Sequence[web.RouteDef]:
        """The API on the Unix socket."""
        return self._api.routes()

    async def start(self, tasks: asyncio.TaskGroup) -> None:  # noqa: ARG002 - has no background task
        """Open the store, then listen."""
        root = Path(self._settings.data_dir or self._shell.paths.process_state("s5"))
        store = await asyncio.to_thread(
            open_blob_store,
            root,
            max_blob_bytes=self._settings.max_blob_bytes,
            quota_bytes=self._settings.quota_bytes,
        )
        self._used.set_function(lambda: store.used_bytes)
        self._api.open(store)
        self._url = await self._listen(store)
        await asyncio.to_thread(self._publish_url)

    def readiness(self) -> str:
        """Where blobs are served."""
        return self._url or "opening the blob store"

    async def drain(self) -> None:
        """Nothing: a cut-off upload is made again, a cut-off download too."""

    async def stop(self) -> None:
        """Close the TCP side."""
        await asyncio.to_thread((self._shell.paths.run / URL_FILE).unlink, missing_ok=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _listen(self, store: BlobStore) -> str:
        host, port = self._settings.listen_host, self._settings.listen_port
        app = public_app(store, __version__)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=2.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise Unavailable(
                f"s5 portal cannot listen on {host}:{port} ({error.strerror}); "
                "set s5.listen_port to a free port, or 0 for any"
            ) from error
        bound = self._runner.addresses[0]
        return f"http://{bound[0]}:{bound[1]}"

    def _publish_url(self) -> None:
        write_whole(self._shell.paths.run / URL_FILE, self._url.encode())


def main() -> int:
    """Read the settings and run until told to stop."""
    settings = settings_from_arguments(sys.argv[1:])
    return run_service(
        "s5", settings.node, lambda shell: StorageProcess(shell, settings.s5), settings.s5
    )


if __name__ == "__main__":
    sys.exit(main())
