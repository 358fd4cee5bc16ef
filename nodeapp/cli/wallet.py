"""fabstir-node wallet: make the host's key, or say whose key a keystore holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, StateDir, chain_settings_of

MAKE = "`fabstir-node wallet new --keystore FILE --password-file FILE`"
Keystore = Annotated[Path, typer.Option("--keystore", help="V3 keystore file to write.")]
PasswordFile = Annotated[
    Path,
    typer.Option("--password-file", help="One line; made with a random password if missing."),
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="The key that stakes, claims and is paid.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("new")(new)
    group.command("show")(show)
    app.add_typer(group, name="wallet")


def new(keystore: Keystore, password_file: PasswordFile) -> None:
    """Make a key; an existing keystore is never replaced. Back up both files, apart."""
    import secrets

    from nodeapp.core.errors import InvalidRequest
    from nodeapp.evm.accounts import create_keystore, write_password

    if keystore.exists():
        raise InvalidRequest(f"keystore {keystore} exists already; it is never replaced")
    if not password_file.exists():
        write_password(password_file, secrets.token_hex(16))
    wallet = create_keystore(keystore, password_file)
    sys.stdout.write(f"{wallet.address}\n")


def show(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Print the address of the settings' keystore and the public key clients encrypt to."""
    from nodeapp.core.errors import InvalidRequest, NotFound
    from nodeapp.evm.accounts import load_keystore
    from nodeapp.service.config import credential_path

    chain = chain_settings_of(config, state_dir, flags).chain
    empty = [name for name in ("keystore_file", "password_file") if not getattr(chain, name)]
    if empty:
        given = "" if config else "give the settings file that has them with --config, or "
        raise InvalidRequest(
            f"{' and '.join(f'chain.{name}' for name in empty)} not set; {given}make a wallet with"
            f" {MAKE} and set them to its files"
        )
    keystore = credential_path(chain.keystore_file)
    if not keystore.exists():
        raise NotFound(
            f"keystore {keystore} does not exist; make one with `fabstir-node wallet new"
            f" --keystore {keystore} --password-file {chain.password_file}`"
        )
    wallet = load_keystore(keystore, credential_path(chain.password_file))
    sys.stdout.write(f"{wallet.address}  public key {wallet.public_key.hex()}\n")
