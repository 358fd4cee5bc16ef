"""Proof keys where the settings want them: found there, or made of what the settings name."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.prover.profile import (
    Report,
    cached_profile_dir,
    check_profile,
    circuit_rows,
    ensure_profile,
    require_same,
)
from nodeapp.service.download import Progress, Wanted, download
from nodeapp.service.settings import ProverSettings
from nodeapp.wire.proof_profile import CEREMONY_SHA256, ProfileManifest, ProfileName

_MAX_SRS_BYTES = 64 << 20
"""128 bytes a row: the files for 4096 and 16384 rows have 0.5 and 2 MB."""


def keys_place(settings: ProverSettings, cache: Path) -> Path:
    """The directory of the proof keys, there or not."""
    if settings.profile_dir:
        return Path(settings.profile_dir)
    return cached_profile_dir(cache, settings.profile)


def are_made_at_start(settings: ProverSettings) -> bool:
    """Missing keys are no fault: the prover makes them."""
    return bool(settings.srs_source) or (settings.allow_test_srs and not settings.profile_dir)


def check_keys(
    settings: ProverSettings, place: Path, *, with_proving_key: bool = False
) -> ProfileManifest:
    """The keys that the prover would work with, compared with their manifest.

    Args:
        settings: which kind of keys is wanted.
        place: their directory.
        with_proving_key: hash the proving key too (180 MB).

    Raises:
        InvalidRequest: keys of another kind than the settings want.
        Unavailable: missing, incomplete or altered.
    """
    manifest = check_profile(place, with_proving_key=with_proving_key)
    if settings.srs_source:
        require_same(place, manifest, settings.profile, "ppot")
    if manifest.srs == "test" and not settings.allow_test_srs:
        raise InvalidRequest(
            f"proof keys in {place} have a test reference string: move them away and make others"
            " with `fabstir-node proof-keys make --srs FILE`, or set prover.allow_test_srs = true"
            " for development"
        )
    return manifest


async def open_keys(settings: ProverSettings, cache: Path, *, report: Report) -> ProfileManifest:
    """The keys that the prover works with; missing ones are made where the settings say of what.

    Raises:
        InvalidRequest: keys of another kind, or the source is not the ceremony's file.
        NotFound: the source has no such file.
        Unavailable: no keys and nothing to make them of, or the source cannot be reached.
    """
    place = keys_place(settings, cache)
    if settings.srs_source:
        await make_keys(place, settings.profile, settings.srs_source, cache, report=report)
    elif are_made_at_start(settings):
        await ensure_profile(place, settings.profile, report=report)
    return await asyncio.to_thread(check_keys, settings, place, with_proving_key=True)


async def make_keys(
    place: Path, profile: ProfileName, source: str, cache: Path, *, report: Report
) -> ProfileManifest:
    """Keys of the ceremony's reference string; what is there and intact is kept.

    Args:
        place: the directory of the keys.
        profile: which circuit.
        source: path or address of the ceremony's file.
        cache: a fetched file is kept below it.
        report: told each step in one line.

    Raises:
        As open_keys.
    """
    try:
        manifest = await asyncio.to_thread(check_profile, place)
    except Unavailable:
        srs = await _reference_string(source, profile, cache, report)
        return await ensure_profile(place, profile, srs=srs, report=report)
    require_same(place, manifest, profile, "ppot")
    report(f"proof profile {profile}: present ({manifest.srs} reference string)")
    return manifest


async def _reference_string(source: str, profile: ProfileName, cache: Path, report: Report) -> Path:
    """The source as a file; one that was fetched has the ceremony's hash."""
    if "://" not in source:
        return Path(source)
    rows = circuit_rows(profile)
    target = cache / "proofs" / f"kzg{rows}.srs"
    if await asyncio.to_thread(target.is_file):
        return target
    report(f"proof profile {profile}: fetching the reference string, {128 << rows} bytes")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = Wanted(source, _MAX_SRS_BYTES, CEREMONY_SHA256[rows])
    part = target.with_name(f"{target.name}.part")
    fetched = await download(wanted, part, report=_quiet, check_room=_any_room)
    await asyncio.to_thread(fetched.path.replace, target)
    return target


def _quiet(_progress: Progress) -> None:
    """Two megabytes are not worth a line."""


def _any_room(_size: int) -> None:
    """The keys made of it are 90 times larger; a full disk is told by whoever writes."""
