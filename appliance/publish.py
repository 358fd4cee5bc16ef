"""Publish releases: `python -m appliance.publish VERB`, into a TUF repository on disk.

init, pack, add, withdraw      releases
refresh                        by a timer, or nodes refuse after a week
renew, rotate                  what else expires, and keys; nodes follow, however long they slept
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tuf.api.exceptions import RepositoryError

from appliance.channels import NotPublished, kinds_of
from appliance.tuf_repository import KEY_OF, RENEWED, Repository
from nodeapp.core.errors import InvalidRequest

ROOT = Path(__file__).resolve().parents[1]
PACKED = ("nodeapp", "appliance", "docs", "pyproject.toml", "README.md", "LICENSE")
LOCKS = ("requirements.lock", "requirements-dev.lock")


def pack(source: Path, out: Path) -> None:
    """The sources of a release as .tar.gz, the same bytes every time."""
    files = [source / name for name in (*PACKED, *LOCKS) if (source / name).is_file()]
    for name in PACKED:
        files += [path for path in (source / name).rglob("*") if path.is_file()]
    kept = [path for path in sorted(files) if "__pycache__" not in path.parts]
    with (
        out.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in kept:
            member = tar.gettarinfo(path, str(path.relative_to(source)))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = 0
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            with path.open("rb") as file:
                tar.addfile(member, file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m appliance.publish", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, does in (
        ("init", "keys and a repository without releases"),
        ("add", "a release, or further kinds of the newest one"),
        ("withdraw", "offer the release before it again, or none"),
        ("refresh", "sign for another week"),
        ("renew", "sign root and targets for another year and half a year"),
        ("rotate", "replace a key"),
    ):
        one = verbs.add_parser(verb, help=does)
        one.add_argument("--repository", type=Path, required=True)
        one.add_argument("--keys", type=Path, required=True)
    added, withdrawn = verbs.choices["add"], verbs.choices["withdraw"]
    for one in (added, withdrawn):
        one.add_argument("--channel", default="stable")
    added.add_argument("--version", required=True)
    added.add_argument("--notes", default="")
    added.add_argument("--least-from", default="")
    added.add_argument("--kind", nargs="+", action="append", default=[], metavar="KIND FILE")
    added.add_argument("files", type=Path, nargs="*", help="as --kind venv FILE")
    withdrawn.add_argument("version")
    verbs.choices["renew"].add_argument("role", nargs="?", choices=RENEWED, help="alone")
    verbs.choices["rotate"].add_argument("key", choices=sorted(set(KEY_OF.values())))
    verbs.add_parser("pack", help="the sources as a release for plain Linux").add_argument(
        "out", type=Path
    )
    return parser


def _add(repository: Repository, given: argparse.Namespace) -> None:
    venv = [["venv", *given.files]] if given.files else []
    kinds = kinds_of([*given.kind, *venv])
    if not kinds:
        raise NotPublished("a release has files: --kind KIND FILE…, or those for venv alone")
    repository.add(
        given.channel, given.version, kinds, notes=given.notes, least_from=given.least_from
    )


def _carry_out(repository: Repository, given: argparse.Namespace) -> None:
    match given.verb:
        case "init":
            repository.init()
            print(f"give {repository.root_file} to every node")
        case "add":
            _add(repository, given)
        case "withdraw":
            now = repository.withdraw(given.channel, given.version)
            print(f"{given.channel} offers {now or 'nothing'}")
        case "renew":
            repository.renew(RENEWED if given.role is None else [given.role])
        case "rotate":
            if retired := repository.rotate(given.key):
                print(f"{retired} signs no more: destroy it")
        case _:
            repository.refresh()


def main(arguments: Sequence[str] | None = None) -> int:
    """One verb; 1 when it cannot be done, with the reason."""
    given = _parser().parse_args(arguments)
    if given.verb == "pack":
        pack(ROOT, given.out)
        return 0
    repository = Repository(given.repository, given.keys)
    try:
        _carry_out(repository, given)
        for line in repository.expiring(dt.datetime.now(dt.UTC)):
            sys.stderr.write(f"warning: {line}\n")
    except InvalidRequest as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    except (NotPublished, RepositoryError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
