"""The settings of every process as frozen structs; config.py fills them, one section a process.

Every field has a default that is right for a plain checkout, or is empty and checked by the
process that needs it. Units are in the names. Secrets appear only as paths to files. A field that
names a file or a directory is a FilePath: config.py makes it absolute.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

FilePath = Annotated[str, msgspec.Meta(extra={"is_path": True})]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Device = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9,-]{1,200}$")]
ChainName = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9]{0,15}$")]
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"
Hours = Annotated[str, msgspec.Meta(pattern=f"^({_TIME}-{_TIME})?$")]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: immutable, unknown keys refused."""


class NodeSettings(Section, frozen=True):
    """[node]: where files live and how the node talks about itself."""

    state_dir: FilePath = ""
    """Empty: XDG state directory, or /var/lib/fabstir when run as a system service."""
    run_dir: FilePath = ""
    """Empty: <state_dir>/run. Unix socket paths must stay below 108 bytes."""
    cache_dir: FilePath = ""
    """Empty: ~/.cache/fabstir-node, shared by checkouts."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least serious kind of line that is written."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: colours on a terminal, JSON lines elsewhere."""
    processes: tuple[str, ...] = ("s5", "prover", "inference", "chain", "p2p", "updater")
    """What the supervisor runs; further chains and replicas are added by themselves."""
    audit_file_bytes: Annotated[int, msgspec.Meta(ge=65_536, le=1 << 30)] = 4 << 20
    """A file of a process's audit log that grew so long is followed by a new one."""
    audit_files: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 8
    """Full files of each process's audit log that are kept."""
    chain: str = ""
    """NAME of the [chains.NAME] that the host, earnings and wallet commands are about; empty: the
    first chain. The node itself follows all of them whatever stands here."""


class ChainSettings(Section, frozen=True):
    """[chain]: wallet, marketplace and money policy."""

    rpc_urls: Annotated[tuple[str, ...], msgspec.Meta(max_length=8)] = ("http://127.0.0.1:8545",)
    """The preferred one first; ws:// and wss:// ones only announce new blocks."""
    rpc_timeout_seconds: PositiveSeconds = 10.0
    """For one request to one endpoint."""
    rpc_requests_per_second: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 25.0
    """Most that one endpoint is asked, 0: no limit; endpoints on loopback have none."""
    chain_id: Annotated[int, msgspec.Meta(ge=1)] = 31337
    """Endpoints and the deployment file must be of this chain."""
    abi: Literal["auto", "v2", "v3"] = "auto"
    """Refuse to run on another ABI generation of the contracts than this one."""
    deployment_file: FilePath = ""
    """JSON with the contract addresses; never built in."""
    keystore_file: FilePath = ""
    """Web3 secret storage (version 3) of the host account. A path, or credential:NAME for a
    file that systemd hands over (LoadCredential=)."""
    password_file: FilePath = ""
    """Of the keystore: a path or credential:NAME."""
    signer_url: str = ""
    """http(s)://host:port or unix:/path of a Web3Signer-like signer; then no keystore is read."""
    signer_address: str = ""
    """Whose key the remote signer signs with."""
    payout_address: str = ""
    """Where withdrawn earnings go; empty: they stay with the host account."""
    confirmations: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    """Blocks that must hold an event before it counts."""
    confirmations_by_amount: Annotated[
        tuple[
            tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0, le=1000)]],
            ...,
        ],
        msgspec.Meta(max_length=16),
    ] = ()
    """[[base units, confirmations], …]: sessions with a deposit from so much on are served when
    so many blocks hold them; base units of the session's asset, wei for the native coin."""
    reorg_window_blocks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 64
    """A reorganisation of so many confirmed blocks is followed; a deeper one stops the process."""
    poll_seconds: PositiveSeconds = 1.0
    """How often new blocks are asked for where no endpoint announces them."""
    claim_interval_tokens: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 1000
    """Upper bound; the session's own proofInterval is used when it is smaller."""
    max_proof_interval_tokens: Annotated[int, msgspec.Meta(ge=100, le=1920)] = 1000
    """Sessions with a larger proofInterval are refused: the renter chooses it, and may leave
    before the first claim with one token less. SDK clients ask for 1000; one claim holds 1920."""
    idle_settle_seconds: PositiveSeconds = 600.0
    """A session that nobody used for so long is claimed and completed by the host."""
    proof: Literal["required", "best_effort", "off"] = "required"
    """best_effort: a claim whose proof does not come in time goes out with the renter's receipt
    only; off: every claim does. Renters see it in the offer and may pass such hosts over."""
    proof_patience_seconds: PositiveSeconds = 120.0
    """best_effort: wait for a proof so long, or a quarter of the session's proof window."""
    withdraw: bool = True
    """Pull earnings out of the contract, those of all ended sessions at once."""
    withdraw_interval_seconds: Annotated[int, msgspec.Meta(ge=0, le=31_536_000)] = 3600
    """So long between two withdrawals of an asset; 0: after every session."""
    withdraw_least_native: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Wei; less stays in the contract."""
    withdraw_least_asset: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Base units of a token; less stays in the contract."""
    withdraw_max_gas_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 5.0
    """Gas may eat up so much of a withdrawal; for tokens native_coin_price must be set."""
    native_coin_price: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Worth of one native coin in base units of the token (USDC: dollars x 1000000); 0: unknown."""
    max_fee_gwei: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 100.0
    """Highest price of gas; while the base fee is above it nothing is sent."""
    max_priority_fee_gwei: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 10.0
    """Highest tip of a transaction."""
    base_fee_percent: Annotated[int, msgspec.Meta(ge=100, le=1000)] = 200
    """Base fee that a first attempt offers, in percent of the newest block's."""
    replace_after_blocks: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 10
    """A transaction not mined for so many blocks is sent again for more."""
    fee_bump_percent: Annotated[float, msgspec.Meta(ge=10, le=100)] = 12.5
    """How much more a replacement offers; nodes want 10 at least."""
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """Own transactions waiting to be mined at once."""
    gas_warning_claims: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 50
    """Warn when the host's native coin pays for fewer claims than this."""
    max_gas_per_day: Annotated[int, msgspec.Meta(ge=0)] = 10**18
    """Wei that are signed for gas in 24 hours at most, at the fees offered; 0: no limit."""
    max_payout_per_day: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Wei of native coin that may leave for payout_address in 24 hours; 0: no limit."""
    listing_api_url: str = ""
    """Address for SDK clients in the registry; empty: left as it is on chain."""
    listing_models: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    """Model ids or repo/file; empty: as on chain, a new host lists the model it serves."""
    listing_prices: Annotated[tuple[str, ...], msgspec.Meta(max_length=128)] = ()
    """"MODEL AMOUNT usd|native" per million tokens; MODEL * is every listed one."""
    listing_location: str = ""
    """Shown to renters; empty: left as it is on chain."""
    listing_libp2p: Annotated[tuple[str, ...], msgspec.Meta(max_length=8)] = ()
    """Public addresses of the node with /p2p/ (`fabstir-node peers show`): whoever reads the
    registry finds the node without DHT or gossip."""
    listing_gpu: str = ""
    """Shown to renters; empty: left as it is on chain."""
    listing_vram_gib: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    """Shown to renters; 0: left as it is on chain."""
    listing_max_concurrent: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    """Requests at once, shown to renters; 0: left as it is on chain."""
    listing_check_seconds: PositiveSeconds = 60.0
    """How often the listing is read again when no event of it was seen."""


class InferenceSettings(Section, frozen=True):
    """[inference]: one model on one backend, in one process or in several replicas."""

    replicas: Literal["auto"] | Annotated[int, msgspec.Meta(ge=1, le=16)] = "auto"
    """Processes with the same model, each on a device of its own, between which `p2p` deals the
    requests; "auto": one for each healthy GPU that takes the whole model, else one."""
    devices: Annotated[tuple[Device, ...], msgspec.Meta(max_length=16)] = ()
    """Of each replica, as CUDA_VISIBLE_DEVICES has it: "0", "GPU-…", "0,1" to split the model;
    empty: the healthy GPUs are dealt out when the node starts."""

    model: str = ""
    """Name in the catalogue (`fabstir-node model list`); used when model_path is empty."""
    model_source: str = ""
    """Where `fabstir-node run` fetches model from while the catalogue has none of this name, in
    the forms of `fabstir-node model add`; checked as there."""
    model_path: FilePath = ""
    """A GGUF file; wins over model."""
    model_sha256: str = ""
    """Of model_path or model_source; another file is refused. Empty: not compared."""
    model_repo: str = "bartowski/SmolLM2-135M-Instruct-GGUF"
    """With model_file: repo + "/" + file is what the model registry hashes to the model id; for
    model_path, and for a model_source that is no hub's."""
    model_file: str = "SmolLM2-135M-Instruct-Q4_1.gguf"
    """The other half of what the model registry hashes."""
    store_dir: FilePath = ""
    """Where `fabstir-node model` keeps files; empty: <state_dir>/models."""
    store_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bound of all kept files; the ones used longest ago make room. 0: only the disk's."""
    hub_url: str = ""
    """Base address of hub:… sources; none is built in."""
    context_length: Annotated[int, msgspec.Meta(ge=256, le=1_048_576)] = 4096
    """Tokens per request, prompt and answer together."""
    max_sequences: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Requests that are computed at once."""
    kv_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """KV cells shared by all sequences; 0: context_length * 2."""
    prefill_chunk_tokens: Annotated[int, msgspec.Meta(ge=16, le=8192)] = 256
    """Most tokens of a prompt in one batch, so that running answers go on."""
    threads: Annotated[int, msgspec.Meta(ge=0, le=512)] = 0
    """0: physical cores, one less for answering a single request."""
    pin_threads: bool = False
    """Bind each computing thread to a physical core of its own; see docs/models.md for figures."""
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1, le=10_000)] = -1
    """-1: as many as fit when there is a GPU."""
    queue_requests: Count = 64
    """Requests that wait for a place at once; more are refused."""
    queue_seconds: PositiveSeconds = 120.0
    """What would wait longer for its first token, by the speeds measured, is refused at once."""
    slow_reader_seconds: PositiveSeconds = 30.0
    """An answer nobody takes for so long is ended."""
    speculation: bool = True
    """Guess tokens from the request's own text, where the measured cost of a row makes it pay."""
    public_prefixes: Annotated[tuple[FilePath, ...], msgspec.Meta(max_length=64)] = ()
    """Text files with system prompts whose KV cells all renters may share."""
    embedding_model_path: FilePath = ""
    """A GGUF with a pooling of its own, for /v1/embeddings on the process's socket; empty: none."""
    embedding_model_sha256: str = ""
    """Of embedding_model_path; another file is refused. Empty: not compared."""
    embedding_threads: Annotated[int, msgspec.Meta(ge=1, le=512)] = 1
    """Processor cores for embeddings."""


class ProverSettings(Section, frozen=True):
    """[prover]: EZKL ledger proofs."""

    profile_dir: FilePath = ""
    """Proof keys, as `fabstir-node proof-keys make` leaves them; empty: a place of their own in
    the cache."""
    srs_source: str = ""
    """File or https address of the public ceremony's reference string (kzg14.srs for poseidon,
    kzg12.srs for kzg): the prover makes the missing proof keys of it. Known by its hash."""
    profile: Literal["poseidon", "kzg"] = "poseidon"
    """The kind of circuit: hashes of the ledger by Poseidon, or commitments by KZG."""
    allow_test_srs: bool = False
    """Accept proof keys of a test reference string, and make them where there are none; who made
    one can forge proofs: never on a live network."""
    threads: Annotated[int, msgspec.Meta(ge=0, le=512)] = 0
    """Processor cores for a proof; 0: as many as the prover takes."""
    job_timeout_seconds: PositiveSeconds = 600.0
    """A proof that takes longer is ended and counts as failed."""
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10
    """Added to the priority of proofs, so that inference goes first."""


class StorageSettings(Section, frozen=True):
    """[s5]: the embedded portal."""

    listen_host: str = "127.0.0.1"
    """Address that the portal listens on."""
    listen_port: Port = 5050
    """TCP port of the portal; 0: any free one."""
    data_dir: FilePath = ""
    """Empty: <state_dir>/s5."""
    max_blob_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 31)] = 32 << 20
    """Largest file that is stored."""
    quota_bytes: Annotated[int, msgspec.Meta(ge=1 << 20)] = 10 << 30
    """Bound of all stored files."""


class P2pSettings(Section, frozen=True):
    """[p2p]: the libp2p host and the admission of renters."""

    listen: str = "/ip4/127.0.0.1/tcp/9000"
    """Multiaddress that renters connect to: /ip4/ADDRESS/tcp/PORT."""
    announce: Annotated[tuple[str, ...], msgspec.Meta(max_length=8)] = ()
    """Addresses told to others in place of the ones listened on, e.g. behind NAT."""
    bootstrap: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    """Peers to join the network by, with /p2p/."""
    portal_url: str = "http://127.0.0.1:5050"
    """Where renters fetch results by CID; put into the capability record."""
    receipt_window_tokens: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    """Tokens sent but not yet covered by a signed receipt before the stream pauses."""
    flush_seconds: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.02
    """Tokens gather so long before a frame leaves; the first of an answer leaves at once."""
    receipt_timeout_seconds: PositiveSeconds = 30.0
    """A renter who owes a receipt for so long is cut off."""
    heartbeat_seconds: PositiveSeconds = 10.0
    """A renter who is silent for three of these on an idle stream is cut off."""
    max_connections: Count = 200
    """Of all peers at a time."""
    max_connections_per_subnet: Count = 32
    """Of one /24 (IPv6: /48) at a time; private networks are exempt."""
    max_requests_per_peer: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Open streams of one peer at a time."""
    handshakes_per_minute: Count = 60
    """Of one peer; more are refused."""
    record_ttl_seconds: PositiveSeconds = 3600.0
    """How long the signed offer counts; it is made again at half of that."""
    reprovide_seconds: PositiveSeconds = 21_600.0
    """Time between two announcements in the DHT, at most half of record_ttl_seconds."""
    gossip: bool = True
    """Tell and hear of offers by gossipsub."""
    mdns: bool = False
    """Tell the local network of this host; renters there look for it with `mdns = true`."""
    relays: Annotated[tuple[str, ...], msgspec.Meta(max_length=4)] = ()
    """Multiaddrs with /p2p/ of relays by which renters come while nobody can dial this host."""
    upnp: bool = False
    """Have the router forward the port by UPnP, and announce its address (not over `announce`)."""


class UpdaterSettings(Section, frozen=True):
    """[updater]: snapshots of the journal and backups; updates of the node come with the image."""

    snapshot_interval_seconds: PositiveSeconds = 300.0
    """Time between two copies of the journal on this machine."""
    keep_snapshots: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 12
    """Copies of the journal that are kept."""
    snapshot_dir: FilePath = ""
    """Empty: <state_dir>/snapshots."""
    restic_repository: FilePath = ""
    """Where backups go: a directory, sftp:user@host:/path, s3:https://host/bucket; empty: none."""
    restic_password_file: FilePath = ""
    """A path, or credential:NAME; so are the four below."""
    restic_environment_file: FilePath = ""
    """NAME=VALUE lines for restic: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the like."""
    restic_ssh_key_file: FilePath = ""
    """Private key for an sftp: repository; empty: as the account's own ssh has it."""
    restic_known_hosts_file: FilePath = ""
    """With restic_ssh_key_file: the server's host key, a line of `ssh-keyscan HOST`."""
    recovery_password_file: FilePath = ""
    """Seals wallet key and p2p identity apart inside the backup; empty: keys are left out."""
    backup_interval_seconds: PositiveSeconds = 300.0
    """A backup is made so often when something changed, up to a tenth later."""
    keep_last: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 24
    """Newest backups, and newest btrfs snapshots of the state, that are kept."""
    keep_daily: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 7
    """Days of which the last one is kept."""
    keep_weekly: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 8
    """Weeks of which the last one is kept."""
    state_snapshot_interval_seconds: PositiveSeconds = 3600.0
    """Where state_dir is a btrfs subvolume: read-only snapshots in <state_dir>/.snapshots."""
    keep_free_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 30
    """With less on the disk the oldest of these snapshots go early, down to the newest; 0: none."""
    backend: Literal["none", "venv", "sysupdate", "nixos"] = "none"
    """How this node is updated; none: by whoever installed it."""
    repository_url: str = ""
    """Where releases are published: `metadata/` and `targets/` (TUF) lie below it."""
    trusted_root_file: FilePath = ""
    """The root.json of the first release; everything else is trusted through it."""
    channel: Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9-]{0,31}$")] = "stable"
    """Which releases are offered."""
    releases_dir: FilePath = ""
    """For venv: releases, the link `current`, the update journal. Empty: <state_dir>/releases."""
    check_interval_seconds: PositiveSeconds = 21_600.0
    """Time between two looks for a release; the first one comes minutes after a start."""
    apply_automatically: bool = False
    """Install what a check finds; else `fabstir-node update apply` does."""
    window: Hours = ""
    """Hours of every day, UTC, in which apply_automatically may drain and restart the node, as
    "02:00-05:00"; empty: any time."""
    drain_seconds: PositiveSeconds = 300.0
    """Answers under way may take so long before an update ends them."""
    gate_seconds: PositiveSeconds = 900.0
    """A new release must be healthy by then, its model loaded."""
    gate_settle_seconds: PositiveSeconds = 20.0
    """And stay so for this long."""


class WatchdogSettings(Section, frozen=True):
    """[watchdog]: probes and restarts."""

    probe_seconds: PositiveSeconds = 2.0
    """Time between two questions to a process."""
    misses: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    """Questions in a row without an answer before a process is restarted."""
    probe_timeout_seconds: PositiveSeconds = 5.0
    """An answer that takes longer is missing."""


class Settings(Section, frozen=True):
    """The whole file; a process is handed [node] and its own section only."""

    node: NodeSettings = NodeSettings()
    chain: ChainSettings = ChainSettings()
    chains: dict[ChainName, ChainSettings] = {}
    """Further chains, `[chains.NAME]`; each has a process, a journal and endpoints of its own."""
    inference: InferenceSettings = InferenceSettings()
    prover: ProverSettings = ProverSettings()
    s5: StorageSettings = StorageSettings()
    p2p: P2pSettings = P2pSettings()
    updater: UpdaterSettings = UpdaterSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
