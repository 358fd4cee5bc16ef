"""profile.json: which circuit, keys and reference string a proof was made with.

A profile directory holds `circuit.compiled`, `settings.json`, `srs`, `vk`, `pk` (host only) and
this manifest. Two parties talk about the same proof system exactly if the profile ids agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from nodeapp.core.errors import InvalidRequest

EZKL_VERSION = "23.0.5"
MANIFEST_NAME = "profile.json"

ProfileName = Literal["poseidon", "kzg"]
SrsKind = Literal["test", "ppot"]
"""test: made locally, whoever made it can forge. ppot: from the public ceremony."""
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

COMMITMENT_BYTES: dict[ProfileName, int] = {"poseidon": 32, "kzg": 64}
PROOF_BYTES: dict[ProfileName, int] = {"poseidon": 4384, "kzg": 3744}
"""Exact: EZKL accepts trailing bytes, so another length is another hash of the same proof."""


CEREMONY_SHA256: Mapping[int, str] = {
    12: "28b151069f41abc121baa6d2eaa8f9e4c4d8326ddbefee2bd9c0776b80ac6fad",
    14: "c09129f064c08ecb07ea3689a2247dcc177de6837e7d2f5f946e30453abbccef",
}
"""Perpetual-powers-of-tau files by log2 of the rows. Source: ezkl 23.0.5, src/srs_sha.rs."""


class ProfileManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What profile.json says; every digest is sha256 of the file of that name."""

    profile_id: Digest
    profile: ProfileName
    circuit: Literal["ledger-240"]
    ezkl: str
    srs: SrsKind
    circuit_sha256: Digest
    settings_sha256: Digest
    srs_sha256: Digest
    vk_sha256: Digest
    pk_sha256: Digest
    pk_bytes: Annotated[int, msgspec.Meta(ge=1)]
    version: Literal[1] = 1


def profile_id(
    *, circuit_sha256: str, settings_sha256: str, vk_sha256: str, srs_sha256: str
) -> str:
    """sha256 over the four digests, raw 32 bytes each, in this order."""
    joined = circuit_sha256 + settings_sha256 + vk_sha256 + srs_sha256
    return hashlib.sha256(bytes.fromhex(joined)).hexdigest()


def decode_manifest(data: bytes) -> ProfileManifest:
    """Read profile.json and check that its id follows from its digests.

    Raises:
        InvalidRequest: malformed, another EZKL version, an id or a ceremony that does not match.
    """
    try:
        manifest = msgspec.json.decode(data, type=ProfileManifest)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{MANIFEST_NAME}: {error}") from error
    if manifest.ezkl != EZKL_VERSION:
        raise InvalidRequest(f"profile is for ezkl {manifest.ezkl}, this is {EZKL_VERSION}")
    expected = profile_id(
        circuit_sha256=manifest.circuit_sha256,
        settings_sha256=manifest.settings_sha256,
        vk_sha256=manifest.vk_sha256,
        srs_sha256=manifest.srs_sha256,
    )
    if manifest.profile_id != expected:
        raise InvalidRequest(f"profile id {manifest.profile_id} does not follow from its digests")
    if manifest.srs == "ppot" and manifest.srs_sha256 not in CEREMONY_SHA256.values():
        raise InvalidRequest(f"reference string {manifest.srs_sha256} is not the ceremony's")
    return manifest
