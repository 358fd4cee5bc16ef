"""What a process may no longer do, given up by itself and for good: Landlock, seccomp, rlimits.

Linux only, by system calls through ctypes. Everything here is inherited by children and cannot be
undone. Landlock and seccomp bind the calling thread and those it starts later, so call them
before threads exist. Where the kernel has no Landlock, `confine_files` says so by its result:
whoever needs it refuses, whoever likes it goes on.
Source: landlock(7), seccomp(2), linux/landlock.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import Unavailable

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_CHANGE_DIRECTORY = sum(1 << bit for bit in range(4, 13)) | _REFER
_WRITES = _WRITE_FILE | _CHANGE_DIRECTORY | _TRUNCATE
_READS = _EXECUTE | _READ_FILE | _READ_DIRECTORY
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_TCP_BIND_AND_CONNECT = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3

_ALLOW, _REFUSE, _AS_IF_UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_CLONE_THREAD = 0x00010000


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of system calls; `audit` is AUDIT_ARCH_*."""

    audit: int
    clone: int
    refused: tuple[int, ...]


# socket socketpair | fork vfork execve execveat | ptrace process_vm_readv, _writev pidfd_getfd |
# mount unshare setns | bpf perf_event_open userfaultfd io_uring_setup | add_key request_key keyctl
_KEYS = (248, 249, 250)
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        56,
        (41, 53, 57, 58, 59, 322, 101, 310, 311, 438, 165, 272, 308, 321, 298, 323, 425, *_KEYS),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        220,
        (198, 199, 221, 281, 117, 270, 271, 438, 40, 97, 268, 280, 241, 282, 425, 217, 218, 219),
    ),
}
_CLONE3 = 435
_X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """None leaves a limit as it is. Bytes and seconds of processor time."""

    address_space_bytes: int | None = None
    processor_seconds: int | None = None
    file_bytes: int | None = None
    open_files: int | None = None


def limit_resources(limits: ResourceLimits) -> None:
    """Lower the limits, hard ones too; a crash never writes a core file, which holds secrets."""
    wanted = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_CPU, limits.processor_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
    )
    for kind, value in wanted:
        if value is None:
            continue
        _soft, hard = resource.getrlimit(kind)
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lowered, lowered))


def give_up_new_privileges() -> None:
    """No set-user-id program run from here gains anything.

    Raises:
        Unavailable: not Linux.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Unavailable("this kernel does not know PR_SET_NO_NEW_PRIVS")


def landlock_version() -> int:
    """The kernel's Landlock interface; 0: it has none, or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)))


def confine_files(*, readable: Sequence[Path] | None, writable: Sequence[Path]) -> bool:
    """Only these files and trees may be opened from now on, and no TCP connection made.

    Args:
        readable: files and directories; None leaves reading as it is.
        writable: the same for changing them; reading them is implied. Missing paths are skipped.

    Returns:
        False when the kernel has no Landlock: nothing was done.

    Raises:
        Unavailable: Landlock is there but refuses.
    """
    version = landlock_version()
    if version < 1:
        return False
    give_up_new_privileges()
    handled = _WRITES | (_READS if readable is not None else 0)
    handled &= ~0 if version >= 2 else ~_REFER
    handled &= ~0 if version >= 3 else ~_TRUNCATE
    network = _TCP_BIND_AND_CONNECT if version >= 4 else 0
    scoped = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 and readable is not None else 0
    attributes = struct.pack("QQQ", handled, network, scoped)
    # Older kernels know a shorter structure.
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _call(_CREATE_RULESET, attributes, size, 0)
    try:
        for path in readable or ():
            _allow(rules, path, handled & _READS)
        for path in writable:
            _allow(rules, path, handled)
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def refuse_network_and_programs() -> None:
    """No sockets of any kind, no new programs or processes, no looking into others (seccomp).

    Threads may still be started. A refused call fails with EPERM.

    Raises:
        Unavailable: a processor this file has no numbers for, or the kernel refuses.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise Unavailable(f"no system call filter for {platform.machine()} processors")
    give_up_new_privileges()
    code = b"".join(struct.pack("HBBI", *step) for step in _filter(machine))
    program = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head) != 0:
        raise Unavailable(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _filter(machine: _Machine) -> list[tuple[int, int, int, int]]:
    """Offsets in seccomp_data: 0 number, 4 architecture, 16 first argument (low half)."""
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),
    ]
    # x32 calls have other numbers for the same things.
    steps += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _REFUSE)]
    for number in machine.refused:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # clone3's flags lie in memory, out of reach; libc falls back to clone.
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _AS_IF_UNKNOWN)]
    steps += [
        (_EQUAL, 0, 3, machine.clone),
        (_LOAD, 0, 0, 16),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return steps


def _allow(rules: int, path: Path, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not path.is_dir():
            access &= _OF_FILES
        if access:
            rule = struct.pack("=Qi", access, handle)
            _call(_ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(handle)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise Unavailable(f"landlock: {os.strerror(ctypes.get_errno())}")
    return result
