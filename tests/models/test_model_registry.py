"""What the registry says of a kept model, from a chain that knows it, knows it not, or is away."""

from __future__ import annotations

import pytest

from nodeapp.cli.model_registry import registry_verdicts, verdict_of
from nodeapp.core.errors import NotFound, Unavailable
from nodeapp.core.model_card import model_id
from nodeapp.evm.contracts import ModelInfo
from nodeapp.service.settings import ChainSettings
from tests.models.test_store import entry

ENTRY = entry("a", b"weights")


class FakeContracts:
    """The far end of the model registry."""

    def __init__(self, *, sha256=ENTRY.sha256, active=True, error=None):
        self.info = ModelInfo(
            model_id(ENTRY.repo, ENTRY.file_name),
            ENTRY.repo,
            ENTRY.file_name,
            bytes.fromhex(sha256),
            1,
            active,
            0,
        )
        self.error = error

    async def model(self, wanted):
        if self.error:
            raise self.error
        assert wanted == self.info.model_id
        return self.info


@pytest.mark.parametrize(
    ("contracts", "said"),
    [
        (FakeContracts(), "approved"),
        (FakeContracts(active=False), "not approved"),
        (FakeContracts(error=NotFound("no such model")), "not approved"),
        (FakeContracts(sha256="0" * 64), f"hash differs: the registry has {'0' * 64}"),
        (
            FakeContracts(sha256="0" * 64, active=False),
            f"hash differs: the registry has {'0' * 64}",
        ),
        (FakeContracts(error=Unavailable("no rpc")), "unknown, chain out of reach (no rpc)"),
    ],
)
async def test_the_registrys_word(contracts, said):
    assert await verdict_of(contracts, ENTRY) == said


async def test_without_a_chain_nothing_is_asked():
    assert await registry_verdicts(ChainSettings(), [ENTRY, ENTRY]) == ["no chain configured"] * 2
