"""The image's way: root's helper takes a few verbs, and the transfers are those that Nix renders.

What the real systemd-sysupdate does with them on a disk: tests/image/test_update_loop.py.
"""

import re
import shutil
import socket
import subprocess
import sys
import threading
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.release import Artefact, Release
from nodeapp.updater.backend import ReleaseUnusable
from nodeapp.updater.helper import ALONE, WITH_VERSION, Tools, commands, find_sysupdate
from nodeapp.updater.nixos import NixosBackend
from nodeapp.updater.root_helper import ask_helper
from nodeapp.updater.sysupdate import SysupdateBackend
from tests.nix.expressions import evaluated, needs_nix

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
        ("0.2.\u0663",),  # a digit, but not one of a label or a file name
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
    os_release = tmp_path / "os-release"
    os_release.write_text("IMAGE_VERSION=0.1.0\n")
    tools = Tools(
        nixos_source=source,
        os_release=os_release,
        nixos_flake=tmp_path / "none",
        nixos_record=tmp_path / "generations",
    )
    sysupdate = "/usr/lib/systemd/systemd-sysupdate --no-pager --definitions=/etc/fabstir/sysupdate"
    assert [" ".join(one) for one in commands("fill", ["0.2.0"], tools)] == [
        f"{sysupdate}/slot update 0.2.0"
    ]
    assert [" ".join(one) for one in commands("arm", ["0.2.0"], tools)] == [
        f"{sysupdate}/boot update 0.2.0",
        "bootctl set-default ",
    ]
    assert commands("prefer", ["0.1.0"], tools) == [
        ["bootctl", "set-default", "fabstir-node_0.1.0[.+]*"]
    ]
    assert commands("reboot", [], tools) == [["systemctl", "reboot"]]
    override = "--override-input fabstir-node github:example/fabstir-node/v0.2.0"
    assert (
        " ".join(commands("nixos-build", ["0.2.0"], tools)[0]) == f"nixos-rebuild build {override}"
    )
    assert " ".join(commands("nixos-boot", ["0.2.0"], tools)[0]) == f"nixos-rebuild boot {override}"
    # Of a release that no helper recorded.
    assert [" ".join(one) for one in commands("nixos-back", ["0.0.9"], tools)] == [
        "nix-env --profile /nix/var/nix/profiles/system --rollback",
        "/nix/var/nix/profiles/system/bin/switch-to-configuration boot",
    ]


def test_the_release_that_is_preferred_is_no_other_that_begins_like_it():
    """The failed 0.1.10 would come first: systemd-boot takes the newest that fits."""
    pattern = commands("prefer", ["0.1.1"], Tools())[0][-1]
    names = ("0.1.1", "0.1.1+3-0", "0.1.10", "0.1.10+2-1", "0.1.1-rc.1", "0.1.11")
    fits = [name for name in names if fnmatchcase(f"fabstir-node_{name}.efi", pattern)]
    assert fits == ["0.1.1", "0.1.1+3-0"]


@pytest.mark.parametrize("verb", ["fill", "arm"])
def test_a_machine_that_does_not_say_what_runs_installs_nothing(tmp_path, verb):
    os_release = tmp_path / "os-release"
    os_release.write_text("ID=debian\n")
    with pytest.raises(InvalidRequest, match="no IMAGE_VERSION"):
        commands(verb, ["0.2.0"], Tools(os_release=os_release))


def test_the_tool_is_found_where_nixos_and_where_others_have_it(tmp_path):
    nixos, other = tmp_path / "nixos", tmp_path / "other"
    assert find_sysupdate([str(nixos), str(other)]) == str(other)
    other.touch()
    assert find_sysupdate([str(nixos), str(other)]) == str(other)
    nixos.touch()
    assert find_sysupdate([str(nixos), str(other)]) == str(nixos)


@pytest.mark.parametrize("verb", ["fill", "arm"])
def test_root_installs_nothing_older_than_what_runs_whatever_the_updater_says(tmp_path, verb):
    os_release = tmp_path / "os-release"
    os_release.write_text('ID=fabstir-node\nIMAGE_VERSION="0.2.0"\n')
    tools = Tools(os_release=os_release)
    for version in ("0.1.9", "0.2.0-rc.1", "0.2.0"):
        with pytest.raises(InvalidRequest, match=r"not newer than 0\.2\.0, which runs"):
            commands(verb, [version], tools)
    assert commands(verb, ["0.2.1"], tools)
    # The way back to the release before is not an installation.
    assert commands("prefer", ["0.1.9"], tools)


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


def test_a_verb_that_came_too_early_is_asked_again(tmp_path):
    """As systemd does it while the helper before is still counted: accepted, and dropped."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "h.sock"))
    server.listen(4)
    asked = []

    def answer():
        for is_taken in (False, False, True):
            line, _ = server.accept()
            with line:
                if is_taken:
                    asked.append(line.makefile("rb").readline())
                    line.sendall(b"done\n")
        server.close()

    thread = threading.Thread(target=answer)
    thread.start()
    ask_helper("reboot", path=tmp_path / "h.sock")
    thread.join(10)
    assert asked == [b"reboot\n"]


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
    built = [("nixos-build", "0.3.0"), ("nixos-boot", "0.3.0"), ("nixos-back", "0.1.0")]
    assert asked == built
    # The failed one runs; then another was started by hand, which stays the default.
    NixosBackend("0.3.0", asked).fall_back("0.2.0", "0.3.0")
    backend.fall_back("0.2.0", "0.3.0")
    assert asked[3:] == [("nixos-back", "0.2.0"), ("reboot",), ("nixos-back", "0.2.0")]


@needs_nix
def test_the_transfers_are_those_that_nix_renders():
    files = {
        part: {path.name: path.read_text() for path in (TRANSFERS / part).iterdir()}
        for part in ("slot", "boot")
    }
    assert evaluated("import ./nixos-modules/lib/sysupdate.nix { }") == files


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
