"""The fabstir-node command. Errors are one line on stderr; after Ctrl-C typer ends with 130."""

from __future__ import annotations

import sys

import typer

from nodeapp.cli import (
    audit,
    backup,
    bootstrap,
    config,
    console,
    demo,
    devnet,
    doctor,
    earnings,
    gpu,
    health,
    host,
    metrics,
    model,
    peers,
    proof_keys,
    provision,
    renter,
    run,
    status,
    update,
    wallet,
)
from nodeapp.core.errors import NodeError

EXIT_FAILURE = 1

app = typer.Typer(
    name="fabstir-node",
    help="Host node of the Fabstir marketplace: sell LLM inference, peer to peer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
demo.register(app)
run.register(app)
devnet.register(app)
bootstrap.register(app)
renter.register(app)
status.register(app)
metrics.register(app)
doctor.register(app)
gpu.register(app)
config.register(app)
console.register(app)
backup.register(app)
audit.register(app)
provision.register(app)
update.register(app)
health.register(app)
host.register(app)
earnings.register(app)
model.register(app)
proof_keys.register(app)
peers.register(app)
wallet.register(app)


def main() -> int:
    """Run one command; typer itself exits when it went well, else this is the exit code."""
    try:
        app()
    except NodeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return EXIT_FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
