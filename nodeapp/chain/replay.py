"""Replay a journal file and tell what is in it: `python -m nodeapp.chain.replay FILE`.

Rules of this file: the file itself is not touched, a copy is; one JSON object on stdout. The
updater runs it on every backup it made: only what replays counts as a backup.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import NodeError
from nodeapp.core.ids import Address
from nodeapp.store.backups import owner_of
from nodeapp.wire.ipc_updater import ReplayReport


async def replayed(backup: Path) -> ReplayReport:
    """Open a copy as the chain process would.

    Raises:
        Corrupt: it does not replay, is damaged, or was written by a newer program.
    """
    owner = Address(owner_of(backup))
    # Beside it, not in /tmp: that is memory on many machines.
    directory = Path(tempfile.mkdtemp(prefix=".replay-", dir=backup.parent))
    try:
        copy = directory / "journal.db"
        await asyncio.to_thread(shutil.copyfile, backup, copy)
        ledger = await Ledger.open(copy, owner=owner, marker=directory / "marker")
        try:
            cursor = ledger.cursor
            return ReplayReport(
                owner=owner,
                sessions=len(ledger.sessions),
                unsettled=len(ledger.unsettled),
                unclaimed_tokens=sum(
                    max(0, one.acknowledged - one.claimed) for one in ledger.unsettled.values()
                ),
                pending_transactions=len(ledger.outbox.pending),
                block_number=cursor.block_number if cursor is not None else 0,
            )
        finally:
            await ledger.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, directory)


def main() -> int:
    """One file; the exit code says whether it replays."""
    try:
        report = asyncio.run(replayed(Path(sys.argv[1])))
    except NodeError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
