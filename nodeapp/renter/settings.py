"""A renter's own settings file (TOML): chain, wallet, where to look for hosts, how to verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import tomli

from nodeapp.core.errors import InvalidRequest
from nodeapp.renter.standing import Preference
from nodeapp.service.config import absolute_path

PATHS = ("state_dir", "deployment_file", "keystore_file", "password_file", "profile_dir")


class RenterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """renter.toml; `fabstir-node devnet` writes one that works."""

    state_dir: str
    """Identity, received tokens and session records."""
    deployment_file: str
    keystore_file: str
    password_file: str
    rpc_urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=8)]
    chain_id: int
    bootstrap: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]
    model_id: str
    """Model asked for when none is named."""
    profile_dir: str = ""
    """Proof profile to verify with; empty: proofs cannot be checked."""
    allow_test_srs: bool = False
    require_proofs: bool = False
    """Rent only from hosts that prove every claim, and call a claim without a proof a fault."""
    deposit: Annotated[int, msgspec.Meta(ge=1)] = 500_000
    """Base units of USDC per session (500000 = 0.50 USDC, the marketplace's minimum)."""
    max_price_per_token: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    """Most that a host may ask, base units of USDC per 1000 tokens."""
    proof_interval_tokens: Annotated[int, msgspec.Meta(ge=100)] = 100
    proof_timeout_seconds: Annotated[int, msgspec.Meta(ge=60, le=3600)] = 300
    max_duration_seconds: Annotated[int, msgspec.Meta(ge=60, le=365 * 86_400)] = 86_400
    resume_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0
    """A lost host is called again for so long."""
    failover_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0
    """A lost host is called again for so long while there is another one to go on with."""
    mdns: bool = False
    """Look for hosts on the local network, too; only those may have private addresses."""
    slow_reader_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0
    """A client of `renter proxy` that takes nothing of its answer for so long is cut off, and no
    more tokens are bought for it."""
    max_hosts: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    """Sessions paid for one answer at most, a kept one included."""
    prefer: Preference = "balanced"
    """Which host is taken first; see renter/standing.py."""


def load_renter_settings(path: Path) -> RenterSettings:
    """Read renter.toml; a relative path in it is relative to its directory.

    Raises:
        InvalidRequest: missing, not TOML, unknown key or value out of range.
    """
    try:
        tree = tomli.loads(path.read_text("utf-8"))
        beside = path.absolute().parent
        paths = {key: absolute_path(tree[key], beside) for key in PATHS if key in tree}
        return msgspec.convert({**tree, **paths}, RenterSettings)
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"{path} does not exist; `fabstir-node devnet` writes one, or pass --config"
        ) from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, OSError) as error:
        raise InvalidRequest(f"{path}: {error}") from error
