"""Is a CONFIG whole and right? Every part is read by the code that will use it, before any is used.

The parts are written into a stage and loaded from there: what passes is what is taken over.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec
import tomli

from nodeapp.core.errors import InvalidRequest
from nodeapp.provision.checked import Checked
from nodeapp.provision.findings import Finding
from nodeapp.provision.judge import judge_needs, judge_updater, judge_wallets, remark, ssh_findings
from nodeapp.provision.machine import (
    NETWORK_PREFIX,
    OWN_NETWORK,
    network_findings,
    network_notes,
    network_text,
    read_machine,
)
from nodeapp.provision.medium import plain_text
from nodeapp.provision.parts import (
    APPLIANCE_DEFAULTS,
    AUTHORIZED_KEYS,
    CHAIN_FILES,
    DROP_IN,
    KNOWN,
    MACHINE,
    NETWORK_SUFFIX,
    NODE,
    RESERVED,
    SEALED_SUFFIX,
    UPDATER_FILES,
    SettingFile,
    nearest_known,
)
from nodeapp.security.sealed import open_sealed
from nodeapp.service.config import load_settings
from nodeapp.service.settings import Settings

BARE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SEAL_CONTEXT = b"fabstir/provision/"
SUFFIXES = (NETWORK_SUFFIX, SEALED_SUFFIX)
Tree = Mapping[str, object]


def open_sealed_parts(
    files: Mapping[str, bytes], private_key: bytes | None
) -> tuple[dict[str, bytes], list[Finding]]:
    """Every `NAME.sealed` under its own name; without the machine's key a note cannot be made."""
    opened: dict[str, bytes] = {}
    found: list[Finding] = []
    for name, content in files.items():
        plain = name.removesuffix(SEALED_SUFFIX)
        if plain == name or private_key is None:
            opened[name] = content
            continue
        try:
            box = base64.b64decode(content, validate=False)
            text = open_sealed(box, private_key, context=SEAL_CONTEXT + plain.encode())
        except (InvalidRequest, ValueError):
            problem = "was not sealed for this machine"
            remedy = "seal it to the key that its console shows (`fabstir-node provision make`)"
            found.append(Finding(name, problem, remedy))
            continue
        opened[plain], finding = plain_text(plain, text)
        if finding is not None:
            found.append(finding)
    return opened, found


def check(
    files: Mapping[str, bytes], stage: Path, final: Path, *, held: Collection[str] = ()
) -> Checked:
    """Judge a CONFIG whose secrets are open.

    Args:
        files: by name in lower case, UTF-8.
        stage: an empty directory, mode 0700; holds the generation afterwards.
        final: where the generation will be read from: the paths in the settings.
        held: names that come from the generation before, not from CONFIG.
    """
    checked = Checked()
    if NODE not in files:
        checked.need(NODE, "is missing", "put the settings there; `fabstir-node provision make`")
        return checked
    read_machine_files(files, checked)
    tree = _tree(files[NODE], checked)
    if tree is None:
        return checked
    own = _drop_in(tree, files, final, checked)
    _take(files, held, checked)
    checked.files[NODE] = files[NODE]
    checked.files[DROP_IN] = toml_text(own).encode()
    for name, content in checked.files.items():
        path = stage / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
    checked.settings = _settings(stage, checked)
    if checked.settings is not None:
        judge_needs(checked.settings, checked)
        judge_wallets(checked.settings, own, stage, checked)
        judge_updater(checked.settings, checked)
        remark(checked.settings, checked)
    return checked


def read_machine_files(files: Mapping[str, bytes], checked: Checked) -> None:
    """Name and network of the machine."""
    if MACHINE in files:
        checked.machine, found = read_machine(files[MACHINE].decode())
        checked.findings += found
        if checked.machine.network and not found:
            checked.networks[OWN_NETWORK] = network_text(checked.machine.network)
            checked.notes += network_notes(checked.machine.network)
    for name in sorted(files):
        if not name.endswith(NETWORK_SUFFIX):
            continue
        text = files[name].decode()
        checked.findings += network_findings(name, text)
        checked.networks[f"{NETWORK_PREFIX}{name}"] = text
    if len(checked.networks) > 1 and OWN_NETWORK in checked.networks:
        remedy = "keep [network] of machine.toml or the .network files"
        checked.need(MACHINE, "the network is described twice", remedy, "network")


def _tree(content: bytes, checked: Checked) -> Tree | None:
    try:
        return tomli.loads(content.decode())
    except (tomli.TOMLDecodeError, RecursionError) as error:
        checked.need(NODE, f"is not TOML: {error}", "correct this place")
        return None


def _drop_in(
    tree: Tree, files: Mapping[str, bytes], final: Path, checked: Checked
) -> dict[str, dict[str, str]]:
    """What provisioning adds to the settings: paths, and the appliance's own defaults."""
    own: dict[str, dict[str, str]] = {}
    for section, defaults in APPLIANCE_DEFAULTS.items():
        given = _table(tree, section)
        own[section] = {key: value for key, value in defaults.items() if key not in given}
    for section, values, setting in _file_settings(tree):
        name = _named(section, values, setting, files, checked)
        if not name:
            continue
        own.setdefault(section, {})[setting.key] = str(final / name)
        if name in files:
            checked.files[name] = files[name]
        if setting.is_secret:
            checked.secrets.add(name)
    return own


def _file_settings(tree: Tree) -> Iterator[tuple[str, Tree, SettingFile]]:
    for setting in CHAIN_FILES:
        yield "chain", _table(tree, "chain"), setting
        for name, values in _table(tree, "chains").items():
            if isinstance(values, dict):
                yield f"chains.{name}", values, setting
    for setting in UPDATER_FILES:
        yield "updater", _table(tree, "updater"), setting


def _named(
    section: str,
    values: Tree,
    setting: SettingFile,
    files: Mapping[str, bytes],
    checked: Checked,
) -> str:
    """The file of CONFIG that a setting means; "" when it means none."""
    value = values.get(setting.key, "")
    if not isinstance(value, str) or "/" in value or ":" in value:
        return ""
    if not value:
        # A further chain has keys of its own: two wallets are never one by accident.
        is_default = section == setting.section and _is_there(setting.name, files)
        return setting.name if is_default else ""
    name = value.lower()
    where = f"{section}.{setting.key}"
    if BARE_NAME.fullmatch(value) is None or name in RESERVED or name.endswith(SUFFIXES):
        checked.need(NODE, f"{value!r} is no file name", f"such as {setting.name}", where)
    elif _is_there(name, files):
        return name
    else:
        remedy = f"put {value} beside node.toml, or an absolute path into the setting"
        checked.need(NODE, f"{value} is not on CONFIG", remedy, where)
    return ""


def _is_there(name: str, files: Mapping[str, bytes]) -> bool:
    return name in files or name + SEALED_SUFFIX in files


def _take(files: Mapping[str, bytes], held: Collection[str], checked: Checked) -> None:
    """Parts that no setting names; says what is not read at all."""
    for name in (MACHINE, AUTHORIZED_KEYS):
        if name in files:
            checked.files[name] = files[name]
    if AUTHORIZED_KEYS in files:
        checked.findings += ssh_findings(files[AUTHORIZED_KEYS].decode())
    for name in sorted(files):
        if name.endswith(NETWORK_SUFFIX):
            checked.files[name] = files[name]
        elif name.endswith(SEALED_SUFFIX):
            checked.notes.append(f"{name} is sealed: only the machine can check it")
        elif name not in (*checked.files, *held, NODE):
            near = "" if name in KNOWN else nearest_known(name)
            meant = f"; did you mean {near}" if near else ""
            checked.notes.append(f"{name} is not read{meant}")


def _settings(stage: Path, checked: Checked) -> Settings | None:
    try:
        return load_settings(stage / NODE, environment={})
    except InvalidRequest as error:
        problem = error.message.replace(f"{stage}/", "").removeprefix("settings: ")
        problem = problem.removeprefix(f"settings file {NODE}").strip(": ")
        problem, _, key = problem.partition(" - at `")
        remedy = "correct it; `fabstir-node config schema` lists every key"
        checked.need(NODE, problem, remedy, key.rstrip("`"))
        return None


def _table(tree: Tree, name: str) -> dict[str, object]:
    found = tree.get(name, {})
    return found if isinstance(found, dict) else {}


def toml_text(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Flat tables as TOML; JSON's strings, numbers and lists are TOML's."""
    parts = []
    for name, values in tables.items():
        if values:
            lines = [
                f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values.items()
            ]
            parts.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(parts)
