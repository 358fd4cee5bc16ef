"""A home router's UPnP side on loopback: SSDP, a device description, port mappings by SOAP.

What a real one needs is a network behind it; this one keeps the table and what it was asked.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

GROUP, SSDP_PORT = "239.255.255.250", 1900
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
DEVICE = "urn:schemas-upnp-org:device:{}:1"
ERRORS = {718: "ConflictInMappingEntry", 725: "OnlyPermanentLeasesSupported", 606: "NotAuthorized"}

DESCRIPTION = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>{DEVICE.format("InternetGatewayDevice")}</deviceType><friendlyName>r</friendlyName>
<deviceList><device><deviceType>{DEVICE.format("WANDevice")}</deviceType>
<deviceList><device><deviceType>{DEVICE.format("WANConnectionDevice")}</deviceType>
<serviceList><service><serviceType>{SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>/control</controlURL><eventSubURL>/event</eventSubURL><SCPDURL>/scpd.xml</SCPDURL></service></serviceList>
</device></deviceList></device></deviceList></device></root>"""


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Router:
    """`address` is its public one; `refuses` numbers by external port and lease."""

    address: str = "81.2.69.142"
    mappings: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """External port: (machine, port, lease)."""
    taken: set[int] = field(default_factory=set)
    refuses: int = 0
    permanent_only: bool = False
    refuses_leases: bool = False
    asked: list[str] = field(default_factory=list)
    is_silent: bool = False
    hears: asyncio.Event = field(default_factory=_set)
    """Cleared: what comes is answered when it is set again."""

    def answer(self, action: str, fields: dict[str, str]) -> tuple[int, str]:
        self.asked.append(action)
        match action:
            case "GetStatusInfo":
                return 200, (
                    "<NewConnectionStatus>Connected</NewConnectionStatus>"
                    "<NewLastConnectionError>ERROR_NONE</NewLastConnectionError><NewUptime>9</NewUptime>"
                )
            case "GetExternalIPAddress":
                return 200, f"<NewExternalIPAddress>{self.address}</NewExternalIPAddress>"
            case "AddPortMapping":
                return self._add(fields)
            case "DeletePortMapping":
                self.mappings.pop(int(fields["NewExternalPort"]), None)
                return 200, ""
        return 401, "Invalid Action"

    def _add(self, fields: dict[str, str]) -> tuple[int, str]:
        port, lease = int(fields["NewExternalPort"]), int(fields["NewLeaseDuration"])
        refusal = self.refuses or (718 if port in self.taken else 0)
        refusal = refusal or (725 if self.permanent_only and lease else 0)
        refusal = refusal or (606 if self.refuses_leases and lease else 0)
        if refusal:
            return refusal, ERRORS[refusal]
        machine = (fields["NewInternalClient"], int(fields["NewInternalPort"]), lease)
        self.mappings[port] = machine
        return 200, ""

    @asynccontextmanager
    async def running(self):
        """Answers on loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.bind(("", SSDP_PORT))
        member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton("127.0.0.1"))
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        raw.setblocking(False)
        transport, _ = await loop.create_datagram_endpoint(lambda: _Ssdp(self, port), sock=raw)
        try:
            yield self
        finally:
            transport.close()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
        body = (await reader.readexactly(int(length[1]))).decode() if length else ""
        status, kind, reply = 200, "text/xml", DESCRIPTION
        await self.hears.wait()
        if head.startswith("POST"):
            action = re.search(r"#(\w+)", head)[1]
            code, said = self.answer(action, dict(re.findall(r"<(\w+)>([^<]*)</\1>", body)))
            inner = f'<u:{action}Response xmlns:u="{SERVICE}">{said}</u:{action}Response>'
            if code != 200:
                status, inner = (
                    500,
                    (
                        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
                        f"<UPnPError><errorCode>{code}</errorCode><errorDescription>{said}</errorDescription>"
                        "</UPnPError></detail></s:Fault>"
                    ),
                )
            reply = (
                '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
                f"<s:Body>{inner}</s:Body></s:Envelope>"
            )
        writer.write(
            f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(reply)}\r\n"
            f"Connection: close\r\n\r\n{reply}".encode()
        )
        await writer.drain()
        writer.close()


class _Ssdp(asyncio.DatagramProtocol):
    def __init__(self, router: Router, port: int) -> None:
        self._router, self._port = router, port

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address) -> None:
        if not data.startswith(b"M-SEARCH") or self._router.is_silent:
            return
        target = re.search(rb"\r\nST: *(\S+)", data)[1].decode()
        if target != DEVICE.format("InternetGatewayDevice"):
            return
        self._transport.sendto(
            f"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {target}\r\nUSN: uuid:1::{target}\r\n"
            f"LOCATION: http://127.0.0.1:{self._port}/root.xml\r\n\r\n".encode(),
            address,
        )
