"""Makes a CONFIG at the operator's desk: files from answers, judged by the code of the machine."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import tomli

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.provision.check import SEAL_CONTEXT, check, toml_text
from nodeapp.provision.checked import Checked
from nodeapp.provision.machine import MachineConfig
from nodeapp.provision.medium import MAX_FILE_BYTES, plain_text, read_medium, write_image
from nodeapp.provision.parts import LABEL, MACHINE, NODE, SEALED_SUFFIX, SECRETS, is_asked_for
from nodeapp.provision.places import Places
from nodeapp.security.sealed import seal
from nodeapp.store.atomic import write_whole


@dataclass(frozen=True, slots=True)
class Answers:
    """What a CONFIG is made of."""

    node_toml: Path | None = None
    """Taken as it is; else made of `settings`."""
    settings: Sequence[str] = ()
    """SECTION.KEY=VALUE, value in TOML or plain text."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """By their names on CONFIG."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    seal_to: str = ""
    """Public key of the machine, hex; "" leaves the secrets open."""


def check_medium(path: Path) -> Checked:
    """Judge a CONFIG directory or image without changing anything.

    Raises:
        InvalidRequest: nothing of the kind is there.
        Unavailable: an image needs mtools.
    """
    medium = read_medium(path)
    checked = check_files(medium.files)
    checked.notes += medium.notes
    for name in sorted(medium.being_wiped):
        if is_asked_for(name):
            checked.need(name, "is not text", "write it again")
    checked.findings[:0] = medium.findings
    return checked


def check_files(files: Mapping[str, bytes]) -> Checked:
    """The machine's own judgement, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fabstir-provision-") as stage:
        return check(files, Path(stage), Places().current)


def make_config(answers: Answers, out: Path) -> Checked:
    """Write a CONFIG: a FAT image when `out` ends in .img, else a new or empty directory.

    Raises:
        InvalidRequest: a finding, each with its remedy; `out` is there already.
        Unavailable: the disk is full, or a tool for images is missing.
    """
    files = config_files(answers)
    checked = check_files(files)
    if checked.findings:
        raise InvalidRequest("; ".join(one.text() for one in checked.findings))
    if answers.seal_to:
        files = sealed_files(files, checked.secrets, answers.seal_to)
    if out.suffix == ".img":
        write_image(out, files, label=LABEL)
        return checked
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"{out} is not empty; name a new directory, or a file ending in .img")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"{out} cannot be made: {error.strerror}") from error
    for name, content in files.items():
        write_whole(out / name, content, mode=0o600)
    return checked


def config_files(answers: Answers) -> dict[str, bytes]:
    """The files by name, secrets open.

    Raises:
        InvalidRequest: a file cannot be read, or a setting is not SECTION.KEY=VALUE.
    """
    if answers.node_toml is not None and answers.settings:
        raise InvalidRequest("give node.toml as a file or settings one by one, not both")
    files = {name: _content(path) for name, path in answers.files.items()}
    if answers.node_toml is not None:
        files[NODE] = _content(answers.node_toml)
    else:
        files[NODE] = toml_text(_tree(answers.settings)).encode()
    machine = _machine_text(answers.machine)
    if machine:
        files[MACHINE] = machine.encode()
    return files


def sealed_files(
    files: Mapping[str, bytes], secrets: set[str], public_key: str
) -> dict[str, bytes]:
    """The same with every secret sealed to the machine.

    Raises:
        InvalidRequest: not a public key.
    """
    try:
        recipient = bytes.fromhex(public_key)
    except ValueError as error:
        raise InvalidRequest(f"{public_key[:20]!r} is no public key: 66 hex digits") from error
    sealed: dict[str, bytes] = {}
    for name, content in files.items():
        if name not in secrets | SECRETS:
            sealed[name] = content
            continue
        box = seal(content, recipient, context=SEAL_CONTEXT + name.encode())
        sealed[name + SEALED_SUFFIX] = base64.encodebytes(box)
    return sealed


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{path} is larger than 1 MiB")
    text, finding = plain_text(str(path), content)
    if finding is not None:
        raise InvalidRequest(finding.text())
    return text


def _tree(settings: Sequence[str]) -> dict[str, dict[str, object]]:
    tree: dict[str, dict[str, object]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.rpartition(".")
        if not (equals and dot and section and key):
            raise InvalidRequest(f"{setting!r} is not SECTION.KEY=VALUE")
        try:
            value: object = tomli.loads(f"value = {text}")["value"]
        except tomli.TOMLDecodeError:
            value = text
        tree.setdefault(section, {})[key] = value
    return tree


def _machine_text(machine: MachineConfig) -> str:
    values = msgspec.to_builtins(machine)
    network = values.pop("network") or {}
    plain = {key: value for key, value in values.items() if value}
    lines = [f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in plain.items()]
    given = {key: value for key, value in network.items() if value}
    return "".join(lines) + ("\n" if lines and given else "") + toml_text({"network": given})
