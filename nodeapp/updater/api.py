"""The updater's endpoints."""

from __future__ import annotations

from aiohttp import web

from nodeapp.rpc.updater import SNAPSHOT, SNAPSHOTS, VERSION
from nodeapp.service.server import endpoint, operator, query
from nodeapp.updater.snapshots import SnapshotSets
from nodeapp.updater.version import running_version
from nodeapp.wire.ipc import Empty
from nodeapp.wire.ipc_updater import SnapshotView, VersionView


def updater_routes(snapshots: SnapshotSets) -> list[web.RouteDef]:
    """What rpc/updater.py calls."""

    async def make(_message: Empty) -> SnapshotView:
        return await snapshots.make()

    async def version() -> VersionView:
        return running_version()

    return [
        web.post(SNAPSHOT, operator(endpoint(Empty, make))),
        web.get(SNAPSHOTS, query(snapshots.kept)),
        web.get(VERSION, query(version)),
    ]
