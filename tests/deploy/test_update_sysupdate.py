"""The image's way: root's helper takes a few verbs, and the real systemd-sysupdate with our own
transfers fills the other slot with what was signed and nothing else.

The tools are those of the tool root (tests/image/toolroot.py); FABSTIR_SYSUPDATE_ROOT names
another Debian root that has systemd-sysupdate 257 or later, systemd-repart and gnupg.
"""

import hashlib
import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.release import Artefact, Release
from nodeapp.updater.backend import ReleaseUnusable
from nodeapp.updater.helper import ALONE, WITH_VERSION, Tools, commands
from nodeapp.updater.nixos import NixosBackend
from nodeapp.updater.root_helper import ask_helper
from nodeapp.updater.sysupdate import SysupdateBackend
from tests.image.toolroot import Room, require_tools, room

ROOT = Path(__file__).resolve().parents[2]
TRANSFERS = ROOT / "appliance" / "sysupdate"
UNITS = ROOT / "appliance" / "systemd"


@pytest.mark.parametrize("verb", WITH_VERSION)
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("0.2",),
        ("../../etc",),
        ("--root=/",),
        ("0.2.0", "--help"),
        ("0.2.0;reboot",),
        ("0.2.0\n",),
    ],
)
def test_the_helper_takes_exactly_one_plain_version(verb, arguments):
    with pytest.raises(InvalidRequest):
        commands(verb, arguments, Tools())


@pytest.mark.parametrize("verb", ["", "sh", "update", "fill;", "FILL", "__class__"])
def test_the_helper_knows_no_other_verb(verb):
    with pytest.raises(InvalidRequest, match="known: fill VERSION"):
        commands(verb, ["0.2.0"], Tools())
    with pytest.raises(InvalidRequest):
        commands(verb, [], Tools())


@pytest.mark.parametrize("verb", ALONE)
def test_a_verb_without_a_version_takes_none(verb):
    with pytest.raises(InvalidRequest):
        commands(verb, ["0.2.0"], Tools())


def test_what_each_verb_runs(tmp_path):
    source = tmp_path / "release-source"
    source.write_text("github:example/fabstir-node\n")
    tools = Tools(nixos_source=source)
    sysupdate = "/usr/lib/systemd/systemd-sysupdate --no-pager --definitions=/etc/fabstir/sysupdate"
    assert [" ".join(one) for one in commands("fill", ["0.2.0"], tools)] == [
        f"{sysupdate}/slot update 0.2.0"
    ]
    assert [" ".join(one) for one in commands("arm", ["0.2.0"], tools)] == [
        f"{sysupdate}/boot update 0.2.0",
        "bootctl set-default ",
    ]
    assert commands("prefer", ["0.1.0"], tools) == [
        ["bootctl", "set-default", "fabstir-node_0.1.0*.efi"]
    ]
    assert commands("reboot", [], tools) == [["systemctl", "reboot"]]
    override = "--override-input fabstir-node github:example/fabstir-node/v0.2.0"
    assert (
        " ".join(commands("nixos-build", ["0.2.0"], tools)[0]) == f"nixos-rebuild build {override}"
    )
    assert " ".join(commands("nixos-boot", ["0.2.0"], tools)[0]) == f"nixos-rebuild boot {override}"
    assert [one[0] for one in commands("nixos-back", [], tools)] == [
        "nix-env",
        "/nix/var/nix/profiles/system/bin/switch-to-configuration",
    ]


@pytest.mark.parametrize("text", ["", "path:/tmp/x", "github:a/b --impure", "http://a/b"])
def test_root_decides_where_nixos_releases_come_from(tmp_path, text):
    source = tmp_path / "release-source"
    source.write_text(text)
    with pytest.raises(InvalidRequest, match="no flake reference"):
        commands("nixos-build", ["0.2.0"], Tools(nixos_source=source))


def serve_once(path):
    """What systemd does with fabstir-update.socket: a helper process for one connection."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)

    def answer():
        line, _ = server.accept()
        with server, line:
            subprocess.run(
                [sys.executable, "-m", "nodeapp.updater.helper"],
                stdin=line,
                stdout=line,
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
                timeout=20,
                check=False,
            )

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_the_helper_answers_a_refusal_over_its_socket(tmp_path):
    thread = serve_once(tmp_path / "h.sock")
    with pytest.raises(Unavailable, match=r"update helper: format .*known: fill VERSION"):
        ask_helper("format", "everything", path=tmp_path / "h.sock")
    thread.join()


def test_a_helper_that_is_not_there_is_told_with_what_to_do(tmp_path):
    with pytest.raises(Unavailable, match=r"fabstir-update\.socket enabled"):
        ask_helper("reboot", path=tmp_path / "none.sock")


class Asked(list):
    def __call__(self, *words):
        self.append(words)


def test_the_image_is_filled_before_it_is_armed_and_an_older_one_is_only_preferred():
    asked = Asked()
    backend = SysupdateBackend("0.2.0", asked)
    release = Release("0.3.0", "", "", ())
    with pytest.raises(ReleaseUnusable, match=r"SHA256SUMS, SHA256SUMS\.gpg"):
        backend.install(release, (Path("fabstir-node_0.3.0.efi"),))
    backend.install(release, (Path("a/SHA256SUMS"), Path("a/SHA256SUMS.gpg")))
    backend.arm("0.3.0")
    assert backend.restart()
    backend.arm("0.1.0")
    backend.fall_back("0.1.0", "0.2.0")
    assert asked == [
        ("fill", "0.3.0"),
        ("arm", "0.3.0"),
        ("reboot",),
        ("prefer", "0.1.0"),
        ("prefer", "0.1.0"),
        ("reboot",),
    ]


def test_a_nixos_generation_is_built_then_made_the_default():
    asked = Asked()
    backend = NixosBackend("0.2.0", asked)
    backend.install(Release("0.3.0", "", "", (Artefact("x", 1, "0" * 64),)), ())
    backend.arm("0.3.0")
    backend.arm("0.1.0")
    assert asked == [("nixos-build", "0.3.0"), ("nixos-boot", "0.3.0"), ("nixos-back",)]


def test_the_transfers_are_those_that_nix_renders(tmp_path):
    nix = shutil.which("nix-instantiate")
    if nix is None:
        pytest.skip("Nix is not installed")
    done = subprocess.run(
        [nix, "--eval", "--strict", "--json", "-E", "import ./nixos-modules/lib/sysupdate.nix { }"],
        cwd=ROOT,
        env={
            **os.environ,
            "NIX_REMOTE": "local",
            "NIX_STORE_DIR": str(tmp_path / "store"),
            "NIX_STATE_DIR": str(tmp_path / "state"),
            "NIX_LOG_DIR": str(tmp_path / "log"),
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = {
        part: {path.name: path.read_text() for path in (TRANSFERS / part).iterdir()}
        for part in ("slot", "boot")
    }
    assert json.loads(done.stdout) == files


def test_systemd_takes_the_units(tmp_path):
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    for name in ("fabstir-update.socket", "fabstir-update@.service"):
        text = (UNITS / name).read_text()
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [tool, "verify", "--man=no", tmp_path / "fabstir-update.socket"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "fabstir-update" in line]
    assert ours == []


class Machine:
    """A disk with slot A in use and slot B empty, keys, and a place for downloads."""

    def __init__(self, inside: Room, base: Path):
        self.room, self.base = inside, base
        for name in ("src", "esp", "keys", "definitions", "repart"):
            (base / name).mkdir()
        self.loop = ""

    def inside(self, path: Path) -> str:
        return f"/job/{path.relative_to(self.base)}"

    def run(self, *command: str, check=True) -> subprocess.CompletedProcess:
        return self.room.run(
            *map(str, command),
            check=check,
            environment={"GNUPGHOME": self.inside(self.base / "keys")},
        )

    def make_disk(self):
        for slot, label in (("1a", "fabstir-node_0.1.0"), ("2b", "_empty")):
            for part, size in (("usr", "4M"), ("usr-verity", "1M")):
                (self.base / "repart" / f"{slot}-{part}.conf").write_text(
                    f"[Partition]\nType={part}\nLabel={label}\n"
                    f"SizeMinBytes={size}\nSizeMaxBytes={size}\n"
                )
        disk = self.base / "disk.raw"
        self.run(
            "systemd-repart", "--empty=create", "--size=16M", "--offline=yes", "--dry-run=no",
            f"--definitions={self.inside(self.base / 'repart')}", self.inside(disk),
        )  # fmt: skip
        done = subprocess.run(
            ["losetup", "-f", "--show", "-P", disk], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"no loop device here: {done.stderr.strip()}")
        self.loop = done.stdout.strip()

    def make_key(self):
        (self.base / "keys").chmod(0o700)
        self.run(
            "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key",
            "release@example.org", "ed25519", "sign", "never",
        )  # fmt: skip
        ring = self.run(
            "gpg", "--batch", "--yes", "-o", "/etc/systemd/import-pubring.gpg", "--export"
        )
        assert ring.returncode == 0

    def release(self, version: str) -> dict[str, bytes]:
        """Put a signed release where the updater would; returns the parts' contents."""
        source = self.base / "src"
        for old in source.iterdir():
            old.unlink()
        bodies = {
            f"fabstir-node_{version}_11111111222233334444555555555555.store.raw": os.urandom(
                2_000_000
            ),
            f"fabstir-node_{version}_66666666777788889999aaaaaaaaaaaa.verity.raw": os.urandom(
                200_000
            ),
            f"fabstir-node_{version}.efi": os.urandom(300_000),
        }
        for name, body in bodies.items():
            if name.endswith(".raw"):
                (source / f"{name}.xz").write_bytes(lzma.compress(body, preset=0))
            else:
                (source / name).write_bytes(body)
        sums = "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in sorted(source.iterdir())
        )
        (source / "SHA256SUMS").write_text(sums)
        signed = self.inside(source / "SHA256SUMS")
        self.run("gpg", "--batch", "--quiet", "--detach-sign", "-o", f"{signed}.gpg", signed)
        return {
            name.rsplit(".", 2)[-2 if name.endswith(".raw") else -1]: body
            for name, body in bodies.items()
        }

    def definitions(self) -> str:
        """Our transfers, with this test's disk, ESP and download directory in place of a machine's."""
        target = self.base / "definitions"
        for path in sorted(TRANSFERS.rglob("*.transfer")):
            text = path.read_text()
            text = text.replace(
                "file:///var/lib/fabstir/updater/downloads",
                f"file://{self.inside(self.base / 'src')}",
            )
            text = text.replace("Path=auto", f"Path={self.loop}")
            text = text.replace(
                "Path=/EFI/Linux\nPathRelativeTo=boot", f"Path={self.inside(self.base / 'esp')}"
            )
            text = text.replace("ProtectVersion=%A", "ProtectVersion=0.1.0")
            (target / path.parent.name).mkdir(exist_ok=True)
            (target / path.parent.name / path.name).write_text(text)
        return self.inside(target)

    def verb(self, verb: str, version: str, *, check=True) -> subprocess.CompletedProcess:
        """The first command of a helper's verb; the second is the boot loader's."""
        tools = Tools(definitions=self.definitions())
        return self.run(*commands(verb, [version], tools)[0], check=check)

    def partitions(self) -> dict[str, list[tuple[str, str, int]]]:
        """type → (label, uuid, offset)."""
        done = self.run(
            "systemd-repart", "--json=short", "--dry-run=yes",
            f"--definitions={self.inside(self.base / 'repart')}", self.loop,
        )  # fmt: skip
        found: dict[str, list[tuple[str, str, int]]] = {}
        text = next(line for line in done.stdout.splitlines() if line.startswith("["))
        for row in json.loads(text):
            found.setdefault(row["type"], []).append((row["label"], row["uuid"], row["offset"]))
        return found

    def content(self, offset: int, size: int) -> bytes:
        with (self.base / "disk.raw").open("rb") as file:
            file.seek(offset)
            return file.read(size)


@pytest.fixture
def machine(tmp_path):
    chosen = os.environ.get("FABSTIR_SYSUPDATE_ROOT")
    root = Path(chosen) if chosen else require_tools()
    with room(root, {"/job": tmp_path}) as inside:
        made = Machine(inside, tmp_path)
        try:
            made.make_disk()
            made.make_key()
            yield made
        finally:
            if made.loop:
                subprocess.run(["losetup", "-d", made.loop], check=False)


def test_the_real_tool_fills_the_empty_slot_then_the_boot_entry(machine):
    bodies = machine.release("0.2.0")
    before = machine.partitions()
    machine.verb("fill", "0.2.0")
    after = machine.partitions()
    for kind, part, uuid in (("usr", "store", "1111"), ("usr-verity", "verity", "6666")):
        old, new = after[f"{kind.replace('usr', 'usr-x86-64')}"]
        assert old == before[f"{kind.replace('usr', 'usr-x86-64')}"][0]
        assert new[0] == "fabstir-node_0.2.0"
        assert new[1].startswith(uuid)
        assert machine.content(new[2], len(bodies[part])) == bodies[part]
    assert list((machine.base / "esp").iterdir()) == []
    machine.verb("arm", "0.2.0")
    (entry,) = (machine.base / "esp").iterdir()
    assert entry.name == "fabstir-node_0.2.0+3-0.efi"
    assert entry.read_bytes() == bodies["efi"]


def test_the_real_tool_refuses_what_was_changed_and_leaves_the_slot_in_use(machine):
    machine.release("0.2.0")
    before = machine.partitions()
    sums = machine.base / "src" / "SHA256SUMS"
    whole = sums.read_bytes()
    sums.write_bytes(whole.replace(b"a", b"b", 1))
    refused = machine.verb("fill", "0.2.0", check=False)
    assert refused.returncode != 0
    assert "BAD signature" in refused.stderr
    assert machine.partitions() == before
    sums.write_bytes(whole)
    store = next((machine.base / "src").glob("*.store.raw.xz"))
    store.write_bytes(store.read_bytes()[:-9] + b"tampered!")
    refused = machine.verb("fill", "0.2.0", check=False)
    assert refused.returncode != 0
    labels = [label for rows in machine.partitions().values() for label, _uuid, _offset in rows]
    assert labels.count("fabstir-node_0.1.0") == 2
    assert machine.partitions()["usr-x86-64"][1][0] != "fabstir-node_0.2.0"
    assert list((machine.base / "esp").iterdir()) == []
