"""fabstir-node provision make|check|apply|show: the CONFIG of a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nodeapp.provision.machine import NetworkConfig
    from nodeapp.provision.make import Answers
    from nodeapp.wire.ipc_provision import ProvisionReport

EXIT_REFUSED = 3
MEDIA = Path("/run/media/CONFIG")

Root = Annotated[Path, typer.Option("--root", help="Another machine's root directory.")]
Media = Annotated[Path, typer.Option("--media", help="Where CONFIG is mounted.")]
ConfigPath = Annotated[Path, typer.Argument(help="CONFIG directory, FAT image or device.")]
Out = Annotated[Path, typer.Option("--out", help="New directory, or FAT image ending in .img.")]
NodeToml = Annotated[
    Path | None, typer.Option("--node-toml", help="Settings as they are; else --set and the like.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A line of node.toml; repeatable."),
]
ChainId = Annotated[int | None, typer.Option("--chain-id", help="Asked for when left out.")]
RpcUrl = Annotated[
    list[str] | None, typer.Option("--rpc-url", help="Endpoint of the chain; repeatable.")
]
Model = Annotated[str, typer.Option("--model", help="Name of the model that it serves.")]
ModelSource = Annotated[
    str, typer.Option("--model-source", help="Where its first start fetches the model from.")
]
Srs = Annotated[
    str,
    typer.Option("--srs", help="The ceremony's file or its address: of it are proof keys made."),
]
WithoutProofs = Annotated[
    bool, typer.Option("--without-proofs", help="Claims go out without; renters see it.")
]
Keystore = Annotated[Path | None, typer.Option("--keystore", help="V3 keystore of the host.")]
Password = Annotated[Path | None, typer.Option("--password-file", help="The keystore's.")]
Deployment = Annotated[Path | None, typer.Option("--deployment", help="The contracts' addresses.")]
Keys = Annotated[Path | None, typer.Option("--authorized-keys", help="Who may log in by ssh.")]
TrustedRoot = Annotated[
    Path | None, typer.Option("--trusted-root", help="root.json of the release channel.")
]
ResticPassword = Annotated[Path | None, typer.Option("--restic-password")]
ResticEnvironment = Annotated[Path | None, typer.Option("--restic-environment")]
RecoveryPassword = Annotated[Path | None, typer.Option("--recovery-password")]
Hostname = Annotated[str, typer.Option("--hostname", help="Of the machine.")]
Address = Annotated[
    list[str] | None, typer.Option("--address", help="Static, with prefix length; else DHCP.")
]
Gateway = Annotated[list[str] | None, typer.Option("--gateway")]
Dns = Annotated[list[str] | None, typer.Option("--dns")]
Interface = Annotated[str, typer.Option("--interface", help="Name or pattern of the card.")]
KeepSecrets = Annotated[
    bool, typer.Option("--keep-secrets", help="The machine does not wipe them from CONFIG.")
]
SealTo = Annotated[
    str, typer.Option("--seal-to", help="Key that the machine's console shows; seals secrets.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The CONFIG that a machine gets its settings from.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (make, check, apply, show):
        group.command(command.__name__)(command)
    app.add_typer(group, name="provision")


def apply(root: Root = Path("/"), media: Media = MEDIA, as_json: Json = False) -> None:
    """Take over the mounted CONFIG, on the machine itself. Exit code 3: it was refused."""
    from nodeapp.provision.apply import apply_config
    from nodeapp.provision.medium import labelled
    from nodeapp.provision.parts import LABEL
    from nodeapp.provision.places import Places, service_account
    from nodeapp.provision.rescue import is_kept, let_in

    is_here = root == Path("/")
    places, medium = Places.under(root), media if media.is_dir() else None
    if is_here and not is_kept(places.keys):
        report = let_in(places, medium)
    else:
        account = service_account() if is_here else None
        partitions = labelled(LABEL) if is_here else ()
        report = apply_config(places, medium, account, partitions=partitions)
    _show(report, as_json=as_json)
    if report.outcome == "refused":
        raise typer.Exit(EXIT_REFUSED)


def check(path: ConfigPath, as_json: Json = False) -> None:
    """Judge a CONFIG as the machine would; nothing is changed. Exit code 3: it would be refused."""
    import msgspec

    from nodeapp.provision.make import check_medium

    checked = check_medium(path)
    findings = [one.text() for one in checked.findings]
    if as_json:
        body = {"findings": checked.findings, "notes": checked.notes, "wallet": checked.wallet}
        sys.stdout.write(msgspec.json.encode(body).decode() + "\n")
    else:
        _lines(("finding", findings), ("note", checked.notes))
        _lines(("wallet", [checked.wallet] if checked.wallet else []))
        sys.stdout.write("refused\n" if findings else "good: the machine takes it over\n")
    if findings:
        raise typer.Exit(EXIT_REFUSED)


def show(root: Root = Path("/"), as_json: Json = False) -> None:
    """How the last run on this machine ended, and who the machine is."""
    from nodeapp.core.errors import NotFound
    from nodeapp.provision.places import Places
    from nodeapp.rpc.provision import read_report

    path = Places.under(root).told / "report.json"
    report = read_report(path)
    if report is None:
        raise NotFound(f"{path} does not exist: this machine is not provisioned by a CONFIG")
    _show(report, as_json=as_json)


def make(  # noqa: PLR0913, PLR0917  # one argument an option
    out: Out,
    node_toml: NodeToml = None,
    setting: Setting = None,
    chain_id: ChainId = None,
    rpc_url: RpcUrl = None,
    model: Model = "",
    model_source: ModelSource = "",
    srs: Srs = "",
    without_proofs: WithoutProofs = False,
    keystore: Keystore = None,
    password_file: Password = None,
    deployment: Deployment = None,
    authorized_keys: Keys = None,
    trusted_root: TrustedRoot = None,
    restic_password: ResticPassword = None,
    restic_environment: ResticEnvironment = None,
    recovery_password: RecoveryPassword = None,
    hostname: Hostname = "",
    address: Address = None,
    gateway: Gateway = None,
    dns: Dns = None,
    interface: Interface = "",
    keep_secrets: KeepSecrets = False,
    seal_to: SealTo = "",
) -> None:
    """Write a CONFIG; what is left out is asked for on a terminal."""
    from nodeapp.provision.machine import MachineConfig
    from nodeapp.provision.make import Answers

    given = {
        "wallet.json": keystore,
        "wallet.password": password_file,
        "deployment.json": deployment,
        "authorized_keys": authorized_keys,
        "trusted-root.json": trusted_root,
        "restic.password": restic_password,
        "restic.environment": restic_environment,
        "recovery.password": recovery_password,
    }
    settings = list(setting or [])
    if node_toml is None:
        settings += _chain_settings(chain_id, rpc_url or [])
        settings += _model_settings(model, model_source)
        settings += _proof_settings(srs, without_proofs=without_proofs)
        _ask_for_files(given)
    answers = Answers(
        node_toml=node_toml,
        settings=settings,
        files={name: path for name, path in given.items() if path is not None},
        machine=MachineConfig(
            hostname=hostname,
            keep_secrets=keep_secrets,
            network=_network(interface, address or (), gateway or (), dns or ()),
        ),
        seal_to=seal_to,
    )
    _made(answers, out)


def _chain_settings(chain_id: int | None, rpc_urls: Sequence[str]) -> list[str]:
    """As lines of node.toml; a person at a terminal is asked."""
    import msgspec

    if sys.stdin.isatty():
        if chain_id is None:
            chain_id = typer.prompt("Chain id", type=int)
        if not rpc_urls:
            rpc_urls = typer.prompt("Endpoints of the chain, separated by blanks").split()
    settings = [] if chain_id is None else [f"chain.chain_id={chain_id}"]
    if rpc_urls:
        settings.append(f"chain.rpc_urls={msgspec.json.encode(list(rpc_urls)).decode()}")
    return settings


def _model_settings(model: str, source: str) -> list[str]:
    if sys.stdin.isatty() and not model:
        model = typer.prompt("Name of the model")
        source = source or typer.prompt("Where it is fetched from (docs/models.md)")
    return _texts(("inference.model", model), ("inference.model_source", source))


def _proof_settings(srs: str, *, without_proofs: bool) -> list[str]:
    """Either what proof keys are made of, or a node without a prover."""
    if sys.stdin.isatty() and not (srs or without_proofs):
        question = "The ceremony's file for proof keys: path on the machine, or address"
        srs = typer.prompt(f"{question}; empty for no proofs", default="")
        without_proofs = not srs
    if not without_proofs:
        return _texts(("prover.srs_source", srs))
    import msgspec

    from nodeapp.service.settings import NodeSettings

    processes = [one for one in NodeSettings().processes if one != "prover"]
    named = f"node.processes={msgspec.json.encode(processes).decode()}"
    return [*_texts(("chain.proof", "off")), named]


def _texts(*named: tuple[str, str]) -> list[str]:
    """Lines of node.toml for what is given."""
    import msgspec

    return [f"{key}={msgspec.json.encode(value).decode()}" for key, value in named if value]


def _ask_for_files(files: dict[str, Path | None]) -> None:
    if not sys.stdin.isatty():
        return
    questions = {
        "wallet.json": "Keystore file (`fabstir-node wallet new` makes one)",
        "wallet.password": "Its password file",
        "deployment.json": "Deployment file of the network",
    }
    for name, question in questions.items():
        if files[name] is None:
            files[name] = Path(typer.prompt(question))
    if files["authorized_keys"] is None:
        given = typer.prompt("File with public ssh keys, empty for none", default="")
        files["authorized_keys"] = Path(given) if given else None


def _network(
    interface: str, addresses: Sequence[str], gateways: Sequence[str], dns: Sequence[str]
) -> NetworkConfig | None:
    """None: nothing is said, the machine asks by DHCP on every card."""
    from nodeapp.provision.machine import NetworkConfig

    if not (interface or addresses or gateways or dns):
        return None
    return NetworkConfig(
        method="static" if addresses else "dhcp",
        interface=interface or NetworkConfig().interface,
        addresses=tuple(addresses),
        gateways=tuple(gateways),
        dns=tuple(dns),
    )


def _made(answers: Answers, out: Path) -> None:
    from nodeapp.provision.make import make_config

    checked = make_config(answers, out)
    _lines(("note", checked.notes), ("wallet", [checked.wallet] if checked.wallet else []))
    if out.suffix == ".img":
        sys.stdout.write(f"written: {out}, to be copied onto the CONFIG partition\n")
    else:
        sys.stdout.write(f"written: copy the files in {out} onto a medium labelled CONFIG\n")


def _show(report: ProvisionReport, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    words = {
        "waiting": "waiting for a CONFIG",
        "applied": "taken over",
        "unchanged": "as it was",
        "refused": "refused; what was taken over before goes on"
        if report.is_configured
        else "refused",
    }
    _lines(
        ("config", [words[report.outcome]]),
        ("finding", report.findings),
        ("note", report.notes),
        ("hostname", [report.hostname]),
        ("wallet", [report.wallet]),
        ("peer id", [report.peer_id]),
        ("machine id", [report.machine_id]),
        ("ssh key", [report.ssh_fingerprint]),
        ("sealing", [report.sealing_key]),
    )


def _lines(*named: tuple[str, Iterable[str]]) -> None:
    for name, texts in named:
        for text in texts:
            if text:
                sys.stdout.write(f"{name:<11} {text}\n")
