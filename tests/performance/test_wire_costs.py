"""Bytes that a token costs between host and renter."""

import pytest

from nodeapp.p2p.relay import MAX_BATCH_TOKENS
from nodeapp.renter.answer import RECEIPT_EVERY_TOKENS
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.framing import encode_frame

TEXT = " lighthouse"
TOKEN_ID = 150_000
"""Three bytes as varint, as in vocabularies of more than 16384 tokens."""


def tokens_frame(count: int) -> bytes:
    tokens = pb.Tokens(first_token=1_000_000, ids=[TOKEN_ID] * count, text=TEXT * count)
    return encode_frame(envelope.encode(tokens=tokens))


def test_a_single_token_costs_twenty_bytes_over_its_text():
    assert len(tokens_frame(1)) - len(TEXT) <= 20


@pytest.mark.parametrize("count", [4, 16, MAX_BATCH_TOKENS])
def test_a_token_in_a_batch_costs_less_than_eight_bytes_over_its_text(count):
    assert len(tokens_frame(count)) / count - len(TEXT) < 8


def test_a_receipt_costs_under_eight_bytes_a_token():
    receipt = pb.Receipt(job_id=2**40, tokens=2**40, running_hash=bytes(32), signature=bytes(65))
    frame = encode_frame(envelope.encode(receipt=receipt))
    assert len(frame) / RECEIPT_EVERY_TOKENS < 8
