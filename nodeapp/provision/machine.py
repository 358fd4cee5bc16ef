"""machine.toml and *.network: name and network of the machine, as systemd-networkd files. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import tomli

from nodeapp.provision.findings import Finding
from nodeapp.provision.parts import MACHINE

HOSTNAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
"""One label of RFC 1123."""
INTERFACE = r"^[A-Za-z0-9*?._: -]{1,100}\Z"
NETWORK_PREFIX = "40-fabstir-"
"""Comes before the image's own file, which asks for an address by DHCP on every card."""
OWN_NETWORK = f"{NETWORK_PREFIX}machine.network"
_SECTION = re.compile(r"\[([A-Za-z0-9]+)\]")
_LINE = re.compile(r"[A-Za-z0-9]+\s*=.*")

Addresses = Annotated[tuple[str, ...], msgspec.Meta(max_length=8)]


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[network] of machine.toml."""

    method: Literal["dhcp", "static"] = "dhcp"
    interface: Annotated[str, msgspec.Meta(pattern=INTERFACE)] = "en* eth*"
    """Names or patterns, as [Match] Name= of systemd.network(5) takes them."""
    addresses: Addresses = ()
    """With prefix length: "192.0.2.10/24", "2001:db8::10/64"."""
    gateways: Addresses = ()
    dns: Addresses = ()


class MachineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """machine.toml."""

    hostname: str = ""
    keep_secrets: bool = False
    """Leave wallet and passwords on CONFIG after they were taken over."""
    network: NetworkConfig | None = None


def read_machine(text: str) -> tuple[MachineConfig, list[Finding]]:
    """machine.toml as values; with findings, the values are the defaults."""
    try:
        config = msgspec.convert(tomli.loads(text), MachineConfig)
    except (tomli.TOMLDecodeError, RecursionError) as error:
        return MachineConfig(), [Finding(MACHINE, f"is not TOML: {error}", "correct this place")]
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        remedy = "see the table of machine.toml in docs/provisioning.md"
        return MachineConfig(), [Finding(MACHINE, problem, remedy, place.rstrip("`"))]
    found = list(_network(config.network)) if config.network else []
    if config.hostname and HOSTNAME.fullmatch(config.hostname) is None:
        remedy = "a-z, 0-9 and - between, at most 63 characters"
        found.append(Finding(MACHINE, f"{config.hostname!r} is no name", remedy, "hostname"))
    return config, found


def _network(network: NetworkConfig) -> Iterator[Finding]:
    if network.method == "dhcp" and (network.addresses or network.gateways):
        remedy = 'set method = "static", or take addresses and gateways out'
        yield Finding(MACHINE, "dhcp gives the address", remedy, "network.addresses")
    if network.method == "static" and not network.addresses:
        remedy = 'for example addresses = ["192.0.2.10/24"]'
        yield Finding(MACHINE, "static needs an address", remedy, "network.addresses")
    for text in network.addresses:
        if _interface(text) is None:
            remedy = "ADDRESS/PREFIX LENGTH, such as 192.0.2.10/24"
            yield Finding(MACHINE, f"{text!r} is no address", remedy, "network.addresses")
    yield from _gateways(network)
    for text in network.dns:
        if _address(text) is None:
            yield Finding(MACHINE, f"{text!r} is no address", "such as 192.0.2.53", "network.dns")


def _gateways(network: NetworkConfig) -> Iterator[Finding]:
    own = [one.network for one in map(_interface, network.addresses) if one is not None]
    for text in network.gateways:
        gateway = _address(text)
        if gateway is None:
            problem, remedy = f"{text!r} is no address", "such as 192.0.2.1"
            yield Finding(MACHINE, problem, remedy, "network.gateways")
        elif own and not gateway.is_link_local and not any(gateway in one for one in own):
            problem = f"{text} is in no network of network.addresses"
            remedy = "give the router's address on this machine's own network"
            yield Finding(MACHINE, problem, remedy, "network.gateways")


def _interface(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
    """None also for one with a scope: systemd.network(5) knows none."""
    try:
        return ipaddress.ip_interface(text) if "/" in text and "%" not in text else None
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def network_notes(network: NetworkConfig) -> Iterator[str]:
    """What a static network is seldom meant to be without."""
    if network.method == "static" and not network.gateways:
        yield f"{MACHINE} names no gateway: nothing outside its own network is reached"
    if network.method == "static" and not network.dns:
        yield f"{MACHINE} names no dns: endpoints are found by address only"


def network_text(network: NetworkConfig) -> str:
    """The .network file (systemd.network(5))."""
    lines = ["[Match]", f"Name={network.interface}", "", "[Network]"]
    if network.method == "dhcp":
        lines.append("DHCP=yes")
    # A netmask behind the slash is understood here, but not by systemd.
    parsed = (_interface(text) for text in network.addresses)
    lines += [f"Address={one.with_prefixlen}" for one in parsed if one is not None]
    lines += [f"Gateway={one}" for one in network.gateways]
    lines += [f"DNS={one}" for one in network.dns]
    return "\n".join(lines) + "\n"


def network_findings(name: str, text: str) -> Iterator[Finding]:
    """What keeps systemd-networkd from reading an operator's own file."""
    sections: dict[str, int] = {}
    section = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if match := _SECTION.fullmatch(line):
            section = match[1]
            sections.setdefault(section, 0)
        elif section and _LINE.fullmatch(line):
            sections[section] += 1
        else:
            remedy = "[Section] or Key=value, see systemd.network(5)"
            yield Finding(name, f"line {number} is {line[:60]!r}", remedy)
            return
    if not sections.get("Match"):
        remedy = "name the interface: [Match] and Name=en*"
        yield Finding(name, "has no [Match] with a condition", remedy)
    if "Network" not in sections:
        yield Finding(name, "has no [Network]", "add [Network] with DHCP=yes or Address=")
