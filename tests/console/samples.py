"""Machines in every phase, as one look sees them."""

from __future__ import annotations

from dataclasses import replace

from nodeapp.console.status import Machine, Seen, UnitState
from nodeapp.service.tree import ProcessStatus
from nodeapp.wire.ipc_chain import HostView, SessionView
from nodeapp.wire.ipc_p2p import NetworkView
from nodeapp.wire.ipc_provision import ProvisionReport
from nodeapp.wire.ipc_update import UpdateView

WALLET = "0x587564AC94BB2f088F08fE4A926040F3f0BD2F03"
PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
USDC = "0x" + "22" * 20
NATIVE = "0x" + "00" * 20
MACHINE = Machine("fabstir-01", "0.2.0", "0.2.0", ("192.0.2.10", "2001:db8::10"), True)
REPORT = ProvisionReport(
    outcome="unchanged",
    is_configured=True,
    generation="0123456789abcdef",
    hostname="fabstir-01",
    machine_id="ab" * 16,
    peer_id=PEER,
    wallet=WALLET,
    ssh_fingerprint="SHA256:0iMq1o1Fv8bZ4m3bJmDk1qGd0WJYw0mN1T6oO3H3x7E",
    sealing_key="02" + "7f" * 32,
)
UPDATE = UpdateView(
    backend="sysupdate",
    channel="stable",
    phase="idle",
    running="0.2.0",
    current="0.2.0",
    available="",
    notes="",
    candidate="",
    previous="0.1.0",
    is_held=False,
    reason="",
    blacklist=(),
    tries_left=0,
    downloaded_bytes=0,
    download_bytes=0,
)
NETWORK = NetworkView(
    peer_id=PEER,
    addresses=("/ip4/192.0.2.10/tcp/9000",),
    connected_peers=12,
    announced_models=(),
    conversations=1,
    is_reachable=True,
    reachability="3 peers dialled back",
)
HOST = HostView(
    address=WALLET,
    public_key=b"\2" * 33,
    chain_id=8453,
    marketplace="0x" + "33" * 20,
    block_number=1000,
    block_time=1,
    is_registered=True,
    model_ids=(),
    usdc=USDC,
    prices=(),
)


def session(job_id: int, phase: str, earned: int, asset: str = USDC) -> SessionView:
    return SessionView(
        job_id=job_id,
        phase=phase,
        renter="0x" + "44" * 20,
        model_id="0x" + "55" * 32,
        asset=asset,
        deposit=1,
        price_per_token=1,
        affordable=1,
        acknowledged=1,
        produced=1,
        claimed=1,
        running_hash=b"",
        proof_interval=100,
        open_request="",
        open_request_first=0,
        claims=1,
        host_earnings=earned,
        refund=0,
    )


def process(name: str, *, ready: bool | None = True, state: str = "RUNNING", detail: str = "ok"):
    return ProcessStatus(name, state, 100, ready, detail, 10.0)


NAMES = ("s5", "prover", "inference", "chain", "p2p", "updater", "watchdog")
READY = tuple(map(process, NAMES))
SESSIONS = (session(1, "completed", 12_345_678), session(2, "active", 0))
SERVING = Seen(
    MACHINE, UnitState("active", "running"), REPORT, READY, UPDATE, NETWORK, HOST, SESSIONS
)


def but(seen: Seen, name: str, **changes: object) -> Seen:
    """The same with one process in another state."""
    other = process(name, **changes)
    processes = tuple(other if one.process == name else one for one in seen.processes)
    return replace(seen, processes=processes)


DOWN = tuple(process(name, ready=None, state="UNKNOWN", detail="not reachable") for name in NAMES)
FRESH = replace(MACHINE, has_settings=False, hostname="localhost")
SAMPLES = {
    "waiting": Seen(
        FRESH,
        report=ProvisionReport(
            outcome="waiting",
            peer_id=PEER,
            ssh_fingerprint=REPORT.ssh_fingerprint,
            sealing_key=REPORT.sealing_key,
        ),
    ),
    "refused": Seen(
        FRESH,
        report=ProvisionReport(
            outcome="refused",
            peer_id=PEER,
            ssh_fingerprint=REPORT.ssh_fingerprint,
            sealing_key=REPORT.sealing_key,
            findings=(
                "wallet.json: password file wallet.password does not open wallet.json;"
                " put keystore and password there that belong together",
                "machine.toml, network.gateways: 192.0.3.1 is in no network of"
                " network.addresses; give the router's address on this machine's own network",
            ),
        ),
    ),
    "starting": Seen(MACHINE, UnitState("activating", "start"), REPORT, DOWN),
    "loading": replace(
        but(SERVING, "inference", ready=False, detail="reads Llama-3.1-8B-Q4_K_M.gguf, 41 %"),
    ),
    "serving": SERVING,
    "unregistered": replace(
        SERVING,
        host=HostView(
            **{**{n: getattr(HOST, n) for n in HOST.__struct_fields__}, "is_registered": False}
        ),
        sessions=(),
    ),
    "updating": replace(
        SERVING,
        update=UpdateView(
            **{
                **{n: getattr(UPDATE, n) for n in UPDATE.__struct_fields__},
                "phase": "downloading",
                "candidate": "0.3.0",
                "downloaded_bytes": 41,
                "download_bytes": 100,
            }
        ),
    ),
    "on_trial": replace(
        SERVING,
        update=UpdateView(
            **{
                **{n: getattr(UPDATE, n) for n in UPDATE.__struct_fields__},
                "phase": "booted",
                "candidate": "0.3.0",
            }
        ),
    ),
    "rolled_back": replace(
        SERVING,
        update=UpdateView(
            **{
                **{n: getattr(UPDATE, n) for n in UPDATE.__struct_fields__},
                "phase": "rolled_back",
                "reason": "0.3.0 was rolled back: inference is fatal",
            }
        ),
    ),
    "fault": but(SERVING, "chain", ready=None, state="FATAL", detail="journal is missing"),
    "down": Seen(MACHINE, UnitState("activating", "auto-restart", 3), REPORT, DOWN),
}
