"""A CONFIG as it lies there: a mounted partition, a directory, or a FAT image. Reads, and wipes.

Only files at the top count. What is read is bounded; nothing is followed out of the directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.provision.findings import Finding
from nodeapp.provision.parts import is_asked_for
from nodeapp.store.atomic import sync_directory

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 64
MTOOLS_SECONDS = 30.0
UDEV = Path("/run/udev/data")
SYSFS = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class Medium:
    """What was read. Names are in lower case; texts are UTF-8 with line feeds."""

    files: Mapping[str, bytes]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """Files that nothing asks for and that cannot be read: a picture, Windows' own."""
    being_wiped: frozenset[str] = frozenset()
    """Files that an interrupted wipe left behind: they count as gone."""
    paths: Mapping[str, Path] = field(default_factory=dict)


def read_medium(path: Path) -> Medium:
    """Read a directory, or an image or device with a FAT file system.

    Raises:
        InvalidRequest: neither of them.
        Unavailable: mtools is missing.
    """
    if path.is_dir():
        return read_directory(path)
    if not path.exists():
        raise InvalidRequest(f"{path} does not exist; name a CONFIG directory or FAT image")
    with tempfile.TemporaryDirectory(prefix="fabstir-config-") as copy:
        _run_mtools("mcopy", "-n", "-Q", "-i", str(path), "::*", copy)
        read = read_directory(Path(copy))
    return replace(read, paths={})


def read_directory(directory: Path) -> Medium:
    """See Medium; what cannot be read is a finding, not an error."""
    files: dict[str, bytes] = {}
    paths: dict[str, Path] = {}
    found: list[Finding] = []
    notes: list[str] = []
    wiped: set[str] = set()
    try:
        entries = [one for one in directory.iterdir() if _counts(one)]
    except OSError as error:
        return Medium({}, (Finding("CONFIG", f"cannot be read ({error.strerror})", "try another"),))
    entries.sort(key=lambda path: (not is_asked_for(path.name.lower()), path.name))
    if len(entries) > MAX_FILES:
        notes.append(f"CONFIG has {len(entries)} files: only {MAX_FILES} were looked at")
    for path in entries[:MAX_FILES]:
        name = _readable(path).lower()
        paths[name] = path
        text, finding = _text(path)
        if finding is None and b"\0" in text:
            wiped.add(name)
        elif finding is None:
            files[name] = text
        elif is_asked_for(name):
            found.append(finding)
        else:
            notes.append(f"{name} is not read: it {finding.problem}")
    return Medium(files, tuple(found), tuple(notes), frozenset(wiped), paths)


def _readable(path: Path) -> str:
    """Its name as text that can be told: a kernel may give it in another alphabet's bytes."""
    return os.fsencode(path.name).decode("utf-8", errors="replace")


def _counts(path: Path) -> bool:
    return not path.name.startswith(".") and not path.is_symlink() and path.is_file()


def _text(path: Path) -> tuple[bytes, Finding | None]:
    name = _readable(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        return b"", Finding(name, problem, "write it again, or use another medium")
    if len(content) > MAX_FILE_BYTES:
        return b"", Finding(name, "is larger than 1 MiB", "take it off CONFIG")
    return plain_text(name, content)


def plain_text(name: str, content: bytes) -> tuple[bytes, Finding | None]:
    """UTF-8 with line feeds and without a mark, whichever editor wrote it; or why it is none."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return b"", Finding(name, "is UTF-16", "save it as UTF-8")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return b"", Finding(name, "is not UTF-8", "save it as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n"), None


def labelled(label: str, database: Path = UDEV, devices: Path = SYSFS) -> tuple[str, ...]:
    """Block devices whose file system has this label, as udev found them; none without udev."""
    found = []
    for path in sorted(database.glob("b*:*")):
        try:
            lines = path.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            continue  # it was pulled out just now
        if f"E:ID_FS_LABEL={label}" in lines:
            found.append(_device_name(devices, path.name[1:]))
    return tuple(found)


def _device_name(devices: Path, number: str) -> str:
    try:
        lines = (devices / number / "uevent").read_text("utf-8").splitlines()
    except OSError:
        return number
    names = (line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME="))
    return next(names, number)


def wipe(medium: Medium, names: Iterable[str]) -> tuple[str, ...]:
    """Overwrite and remove these files; returns those that could not be.

    The zeros come first: a file that holds one is taken for wiped by the next reader. A flash
    medium may keep the old cells all the same; who fears that destroys it.
    """
    left = []
    for name in sorted(names):
        path = medium.paths.get(name)
        if path is None:
            continue
        try:
            _wipe_one(path)
        except OSError:
            left.append(name)
    return tuple(left)


def _wipe_one(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        file.write(b"\0" * size)
        os.fsync(file.fileno())
    path.unlink()
    sync_directory(path.parent)


def write_image(image: Path, files: Mapping[str, bytes], *, label: str) -> None:
    """A new FAT image, 8 MiB, mode 0600; an existing file is never replaced.

    Raises:
        InvalidRequest: it exists.
        Unavailable: dosfstools or mtools is missing, or the disk is full.
    """
    if image.exists():
        raise InvalidRequest(f"{image} exists already; it is never replaced")
    part = image.with_name(f".{image.name}.part")
    try:
        part.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="fabstir-config-") as directory:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.truncate(descriptor, 8 << 20)
            os.close(descriptor)
            _run_mtools("mkfs.vfat", "-n", label, str(part))
            for name, content in files.items():
                (Path(directory) / name).write_bytes(content)
                source = str(Path(directory) / name)
                _run_mtools("mcopy", "-i", str(part), source, f"::{name}")
        part.rename(image)
    except OSError as error:
        raise Unavailable(f"{image} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _run_mtools(program: str, *arguments: str) -> None:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin")
    if found is None:
        package = "dosfstools" if program == "mkfs.vfat" else "mtools"
        raise Unavailable(f"{program} is not installed (package {package})")
    done = subprocess.run(
        [found, *arguments], capture_output=True, timeout=MTOOLS_SECONDS, check=False
    )
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[-200:]
        raise InvalidRequest(f"{program} ended with {done.returncode}: {why}")
