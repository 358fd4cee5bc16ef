"""fabstir-node proof-keys make|check: the keys that the prover proves with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from nodeapp.service.settings import Settings

Srs = Annotated[
    str,
    typer.Option("--srs", help="The ceremony's file or its https address; else prover.srs_source."),
]
Test = Annotated[
    bool, typer.Option("--test", help="Of a reference string made here: forgeable, for tests.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Keys of the proofs: make, check.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("make")(make)
    group.command("check")(check)
    app.add_typer(group, name="proof-keys")


def make(
    srs: Srs = "",
    is_test: Test = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
) -> None:
    """Make them where the settings want them; what is there and intact is kept."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.owner import refuse_foreign
    from nodeapp.core.errors import InvalidRequest
    from nodeapp.prover.keys import make_keys
    from nodeapp.prover.profile import ensure_profile

    settings = settings_of(config, state_dir, flags)
    place, cache = _places(settings)
    source = srs or settings.prover.srs_source
    if is_test == bool(source):
        raise InvalidRequest(
            "say what the keys are made of: --srs with the ceremony's file (docs/host.md), or"
            " --test for keys that nobody should trust"
        )
    refuse_foreign(place)
    profile = settings.prover.profile
    if is_test:
        work = ensure_profile(place, profile, report=_say)
    else:
        work = make_keys(place, profile, source, cache, report=_say)
    run_interruptible(work)
    sys.stdout.write(f"{place}\n")
    if is_test and not settings.prover.allow_test_srs:
        _say("the prover takes them only with prover.allow_test_srs = true")


def check(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Compare every file with the manifest. Exit code 1: the prover would not take them."""
    import msgspec

    from nodeapp.prover.keys import check_keys

    settings = settings_of(config, state_dir, flags)
    place, _cache = _places(settings)
    manifest = check_keys(settings.prover, place, with_proving_key=True)
    if as_json:
        sys.stdout.write(msgspec.json.encode(manifest).decode() + "\n")
        return
    sys.stdout.write(f"{place}\n{manifest.profile}, {manifest.srs} reference string, intact\n")
    sys.stdout.write(f"profile id {manifest.profile_id}\n")


def _places(settings: Settings) -> tuple[Path, Path]:
    """Of the keys, and the cache."""
    from nodeapp.prover.keys import keys_place
    from nodeapp.service.paths import resolve_paths

    cache = resolve_paths(settings.node).cache
    return keys_place(settings.prover, cache), cache


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
