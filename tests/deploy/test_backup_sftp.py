"""A backup repository behind ssh, reached by the node's own key: the real restic, ssh at its far end.

What stands for `ssh` notes how it was called and is the server's own sftp, where there is one.
"""

import shutil
from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.service.settings import UpdaterSettings
from nodeapp.updater.restic import open_restic

SERVER = Path("/usr/lib/openssh/sftp-server")
SSH = """#!/bin/sh
printf '%s\\n' "$@" > {said}
exec {server}
"""
needs_restic = pytest.mark.skipif(
    shutil.which("restic") is None, reason="restic is not installed (apt install restic)"
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name in ("password", "key", "known hosts"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def settings(files, repository, **more):
    return UpdaterSettings(
        restic_repository=repository,
        restic_password_file=str(files / "password"),
        restic_ssh_key_file=str(files / "key"),
        **{"restic_known_hosts_file": str(files / "known hosts"), **more},
    )


def ssh(files, server):
    program = files / "bin" / "ssh"
    program.write_text(SSH.format(said=files / "said", server=server))
    program.chmod(0o755)


@needs_restic
@pytest.mark.parametrize(
    ("repository", "called"),
    [
        ("sftp:me@nas:/node", ["me@nas", "-s", "sftp"]),
        ("sftp://me@nas:2222//node", ["-p", "2222", "me@nas", "-s", "sftp"]),
    ],
)
async def test_ssh_is_called_with_the_nodes_key_and_the_known_server_and_asks_nobody(
    files, repository, called
):
    ssh(files, "/bin/false")
    restic = open_restic(settings(files, repository), files / "cache")
    with pytest.raises(Unavailable):
        await restic.check()
    said = (files / "said").read_text().splitlines()
    key = said.index("-i")
    assert said[key + 1 :] == [str(files / "key"), *called]
    options = said[:key]
    assert f"UserKnownHostsFile={files / 'known hosts'}" in options
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes", "IdentitiesOnly=yes"} <= set(options)


@needs_restic
@pytest.mark.skipif(not SERVER.exists(), reason="apt install openssh-sftp-server")
async def test_a_repository_is_made_and_checked_over_sftp(files):
    ssh(files, SERVER)
    restic = open_restic(settings(files, f"sftp:me@nas:{files / 'repository'}"), files / "cache")
    await restic.prepare()
    await restic.check()
    assert (files / "repository" / "config").is_file()


@pytest.mark.parametrize(
    ("repository", "more", "problem"),
    [
        ("sftp:-oProxyCommand=x:/node", {}, "is not sftp:user@host:/path"),
        ("sftp:", {}, "is not sftp:user@host:/path"),
        ("s3:https://host/bucket", {}, "is for a repository sftp:"),
        ("sftp:me@nas:/node", {"restic_known_hosts_file": ""}, "restic_known_hosts_file"),
        ("sftp:me@nas:/node", {"restic_ssh_key_file": "/nothing"}, "does not exist"),
    ],
)
def test_what_ssh_could_not_use_is_refused(files, repository, more, problem):
    given = {"restic_ssh_key_file": str(files / "key")} | more
    chosen = UpdaterSettings(
        restic_repository=repository,
        restic_password_file=str(files / "password"),
        **{"restic_known_hosts_file": str(files / "known hosts"), **given},
    )
    with pytest.raises(InvalidRequest, match=problem):
        open_restic(chosen, files / "cache")
