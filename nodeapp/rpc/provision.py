"""Reading what provisioning told; it runs once a boot and answers nobody."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nodeapp.wire.ipc_provision import ProvisionReport

REPORT = Path("/run/fabstir-provision/report.json")


def read_report(path: Path = REPORT) -> ProvisionReport | None:
    """None: this machine is not provisioned by a CONFIG, or not yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProvisionReport)
    except (OSError, msgspec.MsgspecError):
        return None
