"""Writes nixos-modules/settings.json: what the NixOS module knows of the node's settings.

One entry a setting: its JSON schema, its default, and its meaning as the source has it. The module
makes a typed option of each, so a wrong value fails before anything is built.

    python -m appliance.nixos_settings > nixos-modules/settings.json
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping

import msgspec

from nodeapp.service.settings import Settings

CHAINS = "chains"
"""Its sections have names of the operator's; their settings are those of [chain]."""
NOTES = ("$ref", "default", "description", "title")


def described_settings() -> dict[str, dict[str, object]]:
    """Sections by name: `description`, and `keys` with schema, default and description."""
    schema = msgspec.json.schema(Settings)["$defs"]
    found: dict[str, dict[str, object]] = {}
    for section in msgspec.structs.fields(Settings):
        if section.name == CHAINS:
            continue
        kind = section.type
        texts = _texts_of_fields(kind)
        properties: Mapping[str, Mapping[str, object]] = schema[kind.__name__]["properties"]
        found[section.name] = {
            "description": _one_line((kind.__doc__ or "").partition(":")[2]),
            "keys": {
                key: {
                    "schema": _schema(entry),
                    "default": entry["default"],
                    "description": texts[key],
                }
                for key, entry in properties.items()
            },
        }
    return found


def _schema(entry: Mapping[str, object]) -> dict[str, object]:
    """Bounds of a float as floats: of two equal annotations typing keeps the first, 0 for 0.0."""
    kept = {name: part for name, part in entry.items() if name not in NOTES}
    if kept.get("type") != "number":
        return kept
    return {name: float(part) if isinstance(part, int) else part for name, part in kept.items()}


def _texts_of_fields(kind: type) -> dict[str, str]:
    """The string below a field is about it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    found: dict[str, str] = {}
    last = ""
    for node in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else ():
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                last = name
            case ast.Expr(value=ast.Constant(value=str() as text)) if last:
                found[last] = _one_line(text)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def settings_json() -> bytes:
    """The whole file."""
    return msgspec.json.format(msgspec.json.encode(described_settings()), indent=1) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(settings_json())
