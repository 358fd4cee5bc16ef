"""What clients say when they do not take a transaction, in their own words."""

import pytest

from nodeapp.evm.refusals import SendRefusal, refusal_of

SAID = {
    # geth, op-geth
    "nonce too low: next nonce 12, tx nonce 9": SendRefusal.NONCE_USED,
    "nonce too high": SendRefusal.NONCE_TOO_HIGH,
    "replacement transaction underpriced": SendRefusal.REPLACEMENT,
    "replacement transaction underpriced: new tx gas fee cap 9 <= 10 queued": (
        SendRefusal.REPLACEMENT
    ),
    "transaction underpriced: gas tip cap 1, minimum needed 1000000": SendRefusal.UNDERPRICED,
    "max fee per gas less than block base fee: address 0x0, maxFeePerGas: 1, baseFee: 7": (
        SendRefusal.UNDERPRICED
    ),
    "insufficient funds for gas * price + value: balance 0, tx cost 21000, overshot 21000": (
        SendRefusal.NO_FUNDS
    ),
    "txpool is full": SendRefusal.OTHER,
    "intrinsic gas too low: gas 20000, minimum needed 21000": SendRefusal.OTHER,
    "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)": SendRefusal.OTHER,
    # anvil
    "nonce too low": SendRefusal.NONCE_USED,
    "Insufficient funds for gas * price + value": SendRefusal.NO_FUNDS,
    # Erigon
    "INTERNAL_ERROR: could not replace existing tx": SendRefusal.REPLACEMENT,
    "INTERNAL_ERROR: nonce too low": SendRefusal.NONCE_USED,
    "INTERNAL_ERROR: insufficient funds": SendRefusal.NO_FUNDS,
    "fee too low": SendRefusal.UNDERPRICED,
    # Nethermind
    "OldNonce, Current nonce: 5, nonce of rejected tx: 3": SendRefusal.NONCE_USED,
    "InsufficientFunds, Account balance: 0, cumulative cost: 1": SendRefusal.NO_FUNDS,
    "FeeTooLow, MaxFeePerGas too low": SendRefusal.UNDERPRICED,
    "ReplacementNotAllowed": SendRefusal.REPLACEMENT,
    # Besu
    "Upfront cost exceeds account balance": SendRefusal.NO_FUNDS,
}


@pytest.mark.parametrize(("words", "refusal"), SAID.items())
def test_a_refusal_is_recognised(words, refusal):
    assert refusal_of(words) is refusal
