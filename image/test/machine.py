"""A virtual machine without hardware help: QEMU under TCG, OVMF, one disk as it was flashed.

Rules of this file: every wait has an end; the machine dies with its room; it is ended by its
process id. What it writes to its serial line is kept.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from image.test.release import Workshop

# Haswell is x86-64-v3, what the portable llama.cpp is compiled for; QEMU 10 has all of it in TCG.
PROCESSOR = "Haswell-noTSX,-pcid,-invpcid,-tsc-deadline"
MEMORY_MIB = 3072
FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
STARTS = re.compile(r"image (\d+\.\d+\.\d+) starts")
POLL_SECONDS = 0.5
GUEST = ("setpriv", "--pdeathsig", "KILL", "nice", "-n", "5")
"""It ends with the campaign, and lets others work."""
EXTRA = (
    "systemd.mask=fabstir-console.service"
    " systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900"
)
"""What emulation needs: no operator's screen, which costs a minute at every boot, and time for
disks and daemons (with the 90 s of a real machine a busy host ended in the emergency shell)."""
HOST = "10.0.2.2"
"""This side, as QEMU's user network shows it to the guest."""


class Silent(AssertionError):
    """The machine did not answer or do something in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a command inside."""

    id: int
    code: int
    out: str
    err: str


@dataclass(slots=True)
class Machine:
    """A running one. Make it with `running_machine`."""

    process: subprocess.Popen[bytes]
    serial: Path
    port: Path
    began: float
    patience: float = 1.0
    """Every wait is so many times as long: for a computer that others use, too."""

    def said(self) -> str:
        """All of the serial line so far."""
        return self.serial.read_text("utf-8", errors="replace")

    def boots(self) -> list[str]:
        """Versions in the order in which they were started."""
        return STARTS.findall(self.said())

    def seconds(self) -> float:
        """Since it was switched on."""
        return time.monotonic() - self.began

    def deadline(self, seconds: float) -> float:
        """When a wait that begins now is over."""
        return time.monotonic() + self.patience * seconds

    def until_boot(self, count: int, seconds: float) -> str:
        """Wait until so many systems were started; the last one's version."""
        self._until(lambda: len(self.boots()) >= count, f"boot number {count}", seconds)
        return self.boots()[count - 1]

    def until_answers(self, seconds: float) -> None:
        """Wait until commands can be run."""
        end = self.deadline(seconds)
        while True:
            with contextlib.suppress(OSError, Silent):
                if self.run("true", seconds=min(20.0, seconds)).code == 0:
                    return
            self._check(end, "the machine's agent")

    def until_true(self, *command: str, seconds: float) -> Answer:
        """Repeat a command until it ends with 0."""
        end = self.deadline(seconds)
        while True:
            with contextlib.suppress(OSError, Silent):
                answer = self.run(*command)
                if answer.code == 0:
                    return answer
            self._check(end, " ".join(command))
            time.sleep(10 * POLL_SECONDS)  # a question costs the guest half a second

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        """One command in the machine.

        Raises:
            Silent: no answer; it is not up, or it went down meanwhile.
        """
        number = time.monotonic_ns()
        asked = json.dumps({"id": number, "command": command, "seconds": seconds}).encode()
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(self.patience * (seconds + 10))
            line.connect(str(self.port))
            # An end of line first: what a request that was given up left behind is no request.
            line.sendall(b"\n" + asked + b"\n")
            try:
                for reply in line.makefile("rb"):
                    with contextlib.suppress(ValueError):
                        answer = Answer(**json.loads(reply))
                        if answer.id == number:
                            return answer
            except TimeoutError as error:
                raise Silent(f"no answer to {command}") from error
        raise Silent(f"no answer to {command}")

    def until_off(self, seconds: float) -> None:
        """Wait for its end."""
        try:
            self.process.wait(self.patience * seconds)
        except subprocess.TimeoutExpired as error:
            raise Silent(f"still on after {seconds:g} s: {self.said()[-300:]}") from error

    def stop(self) -> None:
        """Pull the plug."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def _until(self, look: Callable[[], bool], what: str, seconds: float) -> None:
        end = self.deadline(seconds)
        while not look():
            self._check(end, what)
            time.sleep(POLL_SECONDS)

    def _check(self, end: float, what: str) -> None:
        if self.process.poll() is not None:
            raise Silent(f"the machine ended with {self.process.returncode} before: {what}")
        if time.monotonic() > end:
            raise Silent(f"not in time: {what}; it said last: {self.said()[-600:]}")


@contextlib.contextmanager
def running_machine(  # noqa: PLR0913  # one line a part of a machine
    shop: Workshop,
    disk: Path,
    serial: Path,
    *,
    data: Path,
    forwards: Mapping[int, int],
    patience: float = 1.0,
    processors: int = 2,
) -> Iterator[Machine]:
    """Switch it on; it is off at the end of the block.

    Args:
        shop: has QEMU; its job directory holds all the files.
        disk: written to, as a real one is.
        serial: where its console goes; appended to.
        data: disk beside it, read-only.
        forwards: port of loopback here → port inside.
        patience: see Machine.
        processors: threads that emulate.
    """
    variables = disk.with_suffix(".vars")
    if not variables.exists():
        shop.run("cp", VARIABLES, shop.inside(variables))
    port = shop.job / "agent.sock"
    port.unlink(missing_ok=True)
    serial.parent.mkdir(parents=True, exist_ok=True)
    serial.touch()
    forwarded = "".join(
        f",hostfwd=tcp:127.0.0.1:{outside}-:{inside}" for outside, inside in forwards.items()
    )
    command = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024"),
        *("-cpu", PROCESSOR, "-smp", str(processors), "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-display", "none", "-device", "virtio-rng-pci"),
        *("-chardev", f"file,id=serial,path={shop.inside(serial)},append=on"),
        *("-serial", "chardev:serial"),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"),
        *("-drive", f"if=pflash,format=raw,file={shop.inside(variables)}"),
        *("-drive", f"if=virtio,format=raw,file={shop.inside(disk)},cache=unsafe,discard=unmap"),
        *("-drive", f"if=virtio,format=raw,readonly=on,file={shop.inside(data)}"),
        *("-chardev", f"socket,id=agent,path={shop.inside(port)},server=on,wait=off"),
        *("-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=fabstir.test"),
        *("-smbios", f"type=11,value=io.systemd.stub.kernel-cmdline-extra={EXTRA}"),
        *("-netdev", f"user,id=net{forwarded}", "-device", "virtio-net-pci,netdev=net"),
    ]
    with serial.with_suffix(".qemu").open("wb") as errors:
        process = subprocess.Popen(
            [*GUEST, *shop.tools.command(*command)],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    machine = Machine(process, serial, port, time.monotonic(), patience)
    try:
        yield machine
    finally:
        machine.stop()
