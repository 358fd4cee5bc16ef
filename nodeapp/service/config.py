"""One loader: TOML file + drop-ins + FABSTIR_* environment + flags -> frozen Settings.

The only file that reads environment variables. Later sources win: defaults < file <
file.d/*.toml (sorted) < environment (`FABSTIR_CHAIN__CHAIN_ID=8453`) < flags
(`chain.chain_id=8453`). An unknown key refuses to start and names the nearest known one.

A relative path in the file or in a drop-in is relative to the file's directory, wherever the node
is started; a drop-in is a part of its file, so a line means the same in both. In the environment
and in flags it is relative to the working directory. All leave here absolute: the processes run
elsewhere.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, get_args, get_origin

import msgspec
import tomli

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.chains import with_chain_processes
from nodeapp.service.replicas import with_replica_processes
from nodeapp.service.settings import ChainSettings, Settings

ENVIRONMENT_PREFIX = "FABSTIR_"
CHAINS = "chains"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
CREDENTIAL_PREFIX = "credential:"
CACHE_VARIABLE = "FABSTIR_CACHE"

Tree = dict[str, dict[str, object]]
_NO_PATH = re.compile(r"[a-z][a-z0-9+.-]*:")
"""credential:NAME, sftp:user@host:/path, s3:…"""


def load_settings(
    path: Path | None = None,
    *,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read and check every source.

    Args:
        path: the TOML file; None: no file, defaults only.
        flags: "section.key=value" pairs, values in TOML syntax or plain text.
        environment: stands in for os.environ in tests.

    Raises:
        InvalidRequest: missing file, bad TOML, unknown key, value out of range.
    """
    tree: Tree = {}
    if path is not None:
        beside = path.absolute().parent
        for source in (path, *sorted(path.with_name(path.name + ".d").glob("*.toml"))):
            _merge(tree, _with_paths(_read_toml(source), beside), str(source))
    variables = _from_environment(os.environ if environment is None else environment)
    _merge(tree, _with_paths(variables, Path()), "environment")
    _merge(tree, _with_paths(_from_flags(flags), Path()), "flags")
    _check_names(tree)
    try:
        return with_replica_processes(with_chain_processes(msgspec.convert(tree, Settings)))
    except msgspec.ValidationError as error:
        where = str(error).replace("`$.", "`")
        raise InvalidRequest(f"settings: {where}") from error


def process_environment(names: Iterable[str]) -> dict[str, str]:
    """The named variables of this process that are set; for handing on to a child."""
    return {name: os.environ[name] for name in names if name in os.environ}


def credential_path(value: str) -> Path:
    """A secret's file: a path, or "credential:NAME" below $CREDENTIALS_DIRECTORY (systemd).

    Raises:
        InvalidRequest: no such directory was handed to this process, or NAME is no file name.
    """
    if not value.startswith(CREDENTIAL_PREFIX):
        return Path(value)
    name = value.removeprefix(CREDENTIAL_PREFIX)
    directory = environment_value(CREDENTIALS_VARIABLE)
    if not directory or "/" in name or name in {"", ".", ".."}:
        raise InvalidRequest(
            f"{value}: systemd hands over no credential of this name; add"
            f" LoadCredential={name or 'NAME'}:/path to the unit, or set a path"
        )
    return Path(directory) / name


def environment_value(name: str) -> str:
    """One variable, "" when unset."""
    return os.environ.get(name, "")


def _read_toml(path: Path) -> Tree:
    try:
        parsed = tomli.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"settings file {path} does not exist; write one or leave out --config"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"settings file {path} cannot be read: {error}") from error
    except tomli.TOMLDecodeError as error:
        raise InvalidRequest(f"settings file {path} is not TOML: {error}") from error
    for section, values in parsed.items():
        if not isinstance(values, dict):
            raise InvalidRequest(f"settings file {path}: {section} must be a [section]")
    return parsed


def _from_environment(environment: Mapping[str, str]) -> Tree:
    tree: Tree = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        _put(tree, section, key.split("__"), text)
    return tree


def _from_flags(flags: Sequence[str]) -> Tree:
    tree: Tree = {}
    for flag in flags:
        name, equals, text = flag.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and section and key):
            raise InvalidRequest(f"flag {flag!r} is not section.key=value")
        _put(tree, section, key.split("."), text)
    return tree


def _put(tree: Tree, section: str, keys: Sequence[str], text: str) -> None:
    """`chains` has one more level: a name."""
    if section == CHAINS and len(keys) == 2:
        chain = tree.setdefault(section, {}).setdefault(keys[0], {})
        if isinstance(chain, dict):
            chain[keys[1]] = _value("chain", keys[1], text)
        return
    key = ".".join(keys)
    tree.setdefault(section, {})[key] = _value(section, key, text)


def _with_paths(tree: Tree, beside: Path) -> Tree:
    """The same with every path made absolute."""
    found: Tree = {}
    for section, values in tree.items():
        if section == CHAINS:
            known = _fields_of(ChainSettings)
            found[section] = {
                name: _absolute(known, chain, beside) if isinstance(chain, dict) else chain
                for name, chain in values.items()
            }
        else:
            found[section] = _absolute(_fields(section), values, beside)
    return found


def _absolute(
    known: Mapping[str, object], values: Mapping[str, object], beside: Path
) -> dict[str, object]:
    found = dict(values)
    for key, value in values.items():
        kind = known.get(key)
        if _is_path(kind):
            found[key] = absolute_path(value, beside)
        elif isinstance(value, list) and any(map(_is_path, get_args(_bare(kind)))):
            found[key] = [absolute_path(one, beside) for one in value]
    return found


def absolute_path(value: object, beside: Path) -> object:
    """A path seen from a directory; what is no relative path is left as it is."""
    if not isinstance(value, str) or not value or _NO_PATH.match(value):
        return value
    return str((beside / value).absolute())


def _is_path(kind: object) -> bool:
    notes = (one.extra for one in get_args(kind) if isinstance(one, msgspec.Meta))
    return get_origin(kind) is Annotated and any((note or {}).get("is_path") for note in notes)


def _bare(kind: object) -> object:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _value(section: str, key: str, text: str) -> object:
    """Text fields take the text as it is; every other kind is read as TOML."""
    kind = _bare(_fields(section).get(key))
    if kind is str or kind is None or _is_text_choice(kind) or _is_word_of(kind, text):
        return text
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError as error:
        raise InvalidRequest(f"settings: {section}.{key}={text!r} is not a TOML value") from error


def _is_text_choice(kind: object) -> bool:
    choices = get_args(kind)
    return (
        get_origin(kind) is not tuple
        and bool(choices)
        and all(isinstance(choice, str) for choice in choices)
    )


def _is_word_of(kind: object, text: str) -> bool:
    """One of the words that a field takes beside numbers."""
    return any(text in get_args(choice) for choice in get_args(kind))


def _fields(section: str) -> dict[str, object]:
    for field in msgspec.structs.fields(Settings):
        if field.name == section:
            return {} if section == CHAINS else _fields_of(field.type)
    return {}


def _fields_of(section: type[msgspec.Struct]) -> dict[str, object]:
    return {inner.name: inner.type for inner in msgspec.structs.fields(section)}


def _merge(tree: Tree, extra: Tree, source: str) -> None:
    for section, values in extra.items():
        if not isinstance(values, dict):
            raise InvalidRequest(f"{source}: {section} must be a section")
        known = tree.setdefault(section, {})
        for key, value in values.items():
            before = known.get(key)
            if section == CHAINS and isinstance(before, dict) and isinstance(value, dict):
                known[key] = {**before, **value}
            else:
                known[key] = value


def _check_names(tree: Tree) -> None:
    sections = [field.name for field in msgspec.structs.fields(Settings)]
    for section, values in tree.items():
        if section not in sections:
            raise InvalidRequest(f"unknown section [{section}]{_nearest(section, sections)}")
        if section == CHAINS:
            for name, chain in values.items():
                _check_keys(f"{section}.{name}", chain, _fields_of(ChainSettings))
        else:
            _check_keys(section, values, _fields(section))


def _check_keys(section: str, values: object, known: Mapping[str, object]) -> None:
    if not isinstance(values, dict):
        raise InvalidRequest(f"{section} is no section: a chain is a table [chains.NAME]")
    for key in values:
        if key not in known:
            raise InvalidRequest(f"unknown key {section}.{key}{_nearest(key, list(known))}")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}" if close else f"; known: {', '.join(sorted(known))}"
