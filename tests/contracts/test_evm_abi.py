"""Call data, revert reasons, creation addresses and the deployment file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.core.ids import Address
from nodeapp.evm.abi import checksum, created_address, load_abi, revert_reason
from nodeapp.evm.deployment import Deployment, load_deployment, save_deployment
from nodeapp.evm.errors import WrongShape

LOW_FIRST = (
    "0x08c379a0" + "20".rjust(64, "0") + "9".rjust(64, "0") + b"Low first".hex().ljust(64, "0")
)


@pytest.mark.parametrize(
    ("message", "data", "reason"),
    [
        ("execution reverted: Low first", LOW_FIRST, "Low first"),
        ("VM error", {"data": LOW_FIRST}, "Low first"),
        ("execution reverted: Too many", None, "Too many"),
        ("execution reverted", "0x", ""),
        ("x", "0x4e487b71" + "11".rjust(64, "0"), "panic 17"),
        ("x", "0xdeadbeef", "custom error 0xdeadbeef"),
        ("x", "0x08c379a0ff", "undecodable revert data 0x08c379a0ff"),
        ("VM Exception: revert", None, ""),
        ("nonce too low", None, None),
        ("header not found", "0x", None),
    ],
)
def test_a_revert_reason_is_read_from_data_or_message(
    message: str, data: object, reason: str | None
) -> None:
    assert revert_reason(message, data) == reason


def test_a_selector_is_that_of_the_signature() -> None:
    functions = load_abi("Erc20").functions
    assert functions["transfer"].selector.hex() == "a9059cbb"
    assert functions["balanceOf"].selector.hex() == "70a08231"


def test_arguments_that_do_not_fit_are_refused() -> None:
    submit = load_abi("JobMarketplace").functions["submitProofOfWork"]
    with pytest.raises(InvalidRequest, match="submitProofOfWork"):
        submit.encode((1, -1, bytes(32), "", ""))
    with pytest.raises(InvalidRequest):
        submit.encode((1, 1, bytes(33), "", ""))


def test_an_answer_that_does_not_fit_is_corrupt() -> None:
    abi = load_abi("JobMarketplace")
    with pytest.raises(WrongShape, match="sessionJobs answered 0 bytes"):
        abi.functions["sessionJobs"].decode(b"")
    event = next(event for event in abi.events.values() if event.name == "ProofSubmitted")
    with pytest.raises(WrongShape, match="ProofSubmitted"):
        event.decode([event.topic], b"")


@pytest.mark.parametrize(
    ("nonce", "address"),
    [
        # Source: the example every Ethereum client tests, sender 0x6ac7…d1f0.
        (0, "0xcd234A471b72ba2F1Ccf0A70FCABA648a5eeCD8d"),
        (1, "0x343c43A37D37dfF08AE8C4A11544c718AbB4fCF8"),
        (2, "0xf778B86FA74E846c4f0a1fBd1335FE81c00a0C91"),
    ],
)
def test_a_created_address_follows_from_sender_and_nonce(nonce: int, address: str) -> None:
    sender = checksum("0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0")
    assert created_address(sender, nonce) == address


def test_a_deployment_survives_its_file(tmp_path: Path) -> None:
    address = checksum("0x" + "ab" * 20)
    deployment = Deployment(31337, *([address] * 7))
    path = tmp_path / "new" / "deployment.json"
    save_deployment(path, deployment)
    assert load_deployment(path) == deployment
    path.write_text(path.read_text().replace(address, Address(address.lower())))
    assert load_deployment(path) == deployment


def test_a_wrong_deployment_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        load_deployment(tmp_path / "none.json")
    path = tmp_path / "deployment.json"
    path.write_text('{"chain_id": 1}')
    with pytest.raises(InvalidRequest, match="node_registry"):
        load_deployment(path)
    save_deployment(path, Deployment(1, *(["0x12"] * 7)))
    with pytest.raises(InvalidRequest, match="'0x12' is not an address"):
        load_deployment(path)
