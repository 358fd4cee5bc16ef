"""Keystores, and what a wallet signs and never shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, NotFound, Rejected, Unauthorised
from nodeapp.evm.accounts import (
    DEVNET_SCRYPT_N,
    create_keystore,
    load_keystore,
    new_wallet,
    write_password,
)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_password(path, "correct horse")
    return path


def test_a_keystore_opens_with_its_password(tmp_path: Path, password: Path) -> None:
    path = tmp_path / "keys" / "host.json"
    created = create_keystore(path, password, scrypt_n=DEVNET_SCRYPT_N)
    opened = load_keystore(path, password)
    assert opened.address == created.address
    assert opened.public_key == created.public_key
    assert path.stat().st_mode & 0o777 == password.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["version"] == 3


def test_a_wrong_password_is_refused(tmp_path: Path, password: Path) -> None:
    path = tmp_path / "host.json"
    create_keystore(path, password, scrypt_n=DEVNET_SCRYPT_N)
    other = tmp_path / "other"
    write_password(other, "wrong")
    with pytest.raises(Unauthorised, match="does not open"):
        load_keystore(path, other)


def test_an_existing_keystore_is_never_replaced(tmp_path: Path, password: Path) -> None:
    path = tmp_path / "host.json"
    create_keystore(path, password, scrypt_n=DEVNET_SCRYPT_N)
    before = path.read_bytes()
    with pytest.raises(InvalidRequest, match="exists already"):
        create_keystore(path, password, scrypt_n=DEVNET_SCRYPT_N)
    with pytest.raises(InvalidRequest, match="exists already"):
        write_password(password, "new")
    assert path.read_bytes() == before


def test_missing_and_broken_files_are_named(tmp_path: Path, password: Path) -> None:
    with pytest.raises(NotFound, match=r"missing\.json does not exist"):
        load_keystore(tmp_path / "missing.json", password)
    with pytest.raises(NotFound, match="no-password does not exist"):
        create_keystore(tmp_path / "x.json", tmp_path / "no-password")
    for number, text in enumerate(("not json", "[]", "{}")):
        broken = tmp_path / f"broken{number}.json"
        write_password(broken, text)
        with pytest.raises(InvalidRequest, match="is not a V3 keystore"):
            load_keystore(broken, password)
    empty = tmp_path / "empty"
    write_password(empty, "")
    with pytest.raises(InvalidRequest, match="is empty"):
        load_keystore(tmp_path / "x.json", empty)


def test_a_password_that_everybody_reads_is_refused(tmp_path: Path, password: Path) -> None:
    password.chmod(0o644)
    with pytest.raises(Rejected, match="chmod 600"):
        load_keystore(tmp_path / "x.json", password)


def test_a_wallet_shows_its_address_only() -> None:
    wallet = new_wallet()
    assert repr(wallet) == f"Wallet({wallet.address})"
