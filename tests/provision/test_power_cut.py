"""Killed before any of its writes, provisioning leaves the old configuration or the new one."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from nodeapp.evm.accounts import load_keystore
from nodeapp.provision.apply import apply_config
from nodeapp.provision.generations import read_held
from nodeapp.provision.places import Places
from nodeapp.service.config import load_settings

CUT = 9
NOTHING = ("", "")
_CHANGES = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod",
    "os.truncate", "shutil.rmtree",
}  # fmt: skip


def run_until_cut(root: Path, media: Path, cut: int) -> bool:
    """One run in a child that dies before its write number `cut`; True: it came to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def hook(event, arguments):
        nonlocal count
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not (writes or event in _CHANGES):
            return
        if writes and not str(arguments[0]).startswith((str(root), str(media))):
            return
        count += 1
        if count == cut:
            os._exit(CUT)

    sys.addaudithook(hook)
    try:
        apply_config(Places.under(root), media, None)
    except BaseException:  # noqa: BLE001 - a child of fork must not return into pytest
        os._exit(1)
    os._exit(0)


def state_of(root: Path) -> tuple[str, str]:
    """What the node would start with now: its endpoint and its wallet."""
    places = Places.under(root)
    if read_held(places) is None:
        return NOTHING
    settings = load_settings(places.current / "node.toml", environment={})
    keystore, password = Path(settings.chain.keystore_file), Path(settings.chain.password_file)
    return (settings.chain.rpc_urls[0], load_keystore(keystore, password).address)


@pytest.mark.parametrize("is_first", [True, False], ids=["first boot", "changed config"])
def test_a_power_cut_at_every_write_leaves_old_or_new(tmp_path, desk, is_first):
    memory = Path("/dev/shm")
    base = (memory if memory.is_dir() else tmp_path) / f"fabstir-cut-{os.getpid()}-{is_first}"
    new_text = (desk.directory / "node.toml").read_text().replace("rpc.", "rpc-new.")
    seen = set()
    cut = 0
    try:
        while True:
            cut += 1
            root, media = base / "machine", base / "CONFIG"
            (root / "etc").mkdir(parents=True)
            desk.fill(media)
            old = NOTHING
            if not is_first:
                apply_config(Places.under(root), media, None)
                old = state_of(root)
                (media / "node.toml").write_text(new_text)
            ended = run_until_cut(root, media, cut)
            now = state_of(root)
            new = ("https://rpc.example.org", desk.wallet)
            if not is_first:
                new = ("https://rpc-new.example.org", desk.wallet)
            assert now in (old, new), cut
            seen.add(now)
            # The next boot goes on from whatever was left, to the same end.
            report = apply_config(Places.under(root), media, None)
            assert (report.findings, report.is_configured) == ((), True), (cut, report)
            assert state_of(root) == new
            assert list(media.glob("wallet*")) == []
            left = [one for one in Places.under(root).config.iterdir() if not one.is_symlink()]
            assert left == [read_held(Places.under(root)).directory]
            shutil.rmtree(base)
            if ended:
                break
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(f"{cut - 1} cuts")
    assert cut > 30
    assert seen == {old, new}
