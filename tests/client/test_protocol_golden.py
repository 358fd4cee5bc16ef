"""The renter's wire never changes by accident: golden bytes, also quoted in docs/protocol.md."""

import json
import re
from pathlib import Path

import pytest

from nodeapp.core.errors import BY_CODE
from nodeapp.wire import envelope
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.framing import FrameDecoder
from tests.client.protocol_vectors import build

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "protocol.json").read_text())
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()


def test_the_code_makes_the_golden_bytes():
    assert build() == VECTORS


@pytest.mark.parametrize("example", VECTORS["envelopes"], ids=lambda example: example["name"])
def test_golden_bytes_decode_to_the_message_they_came_from(example):
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(example["frame"]))
    message = envelope.decode(decoder.next_frame(envelope.MAX_STREAM_FRAME_BYTES))
    assert message.WhichOneof("body") == example["body"]
    assert (
        envelope.encode(**{example["body"]: getattr(message, example["body"])}).hex()
        == (example["envelope"])
    )


def test_every_message_has_golden_bytes():
    bodies = {field.name for field in pb.Envelope.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert bodies == {example["body"] for example in VECTORS["envelopes"]}


def test_the_document_quotes_golden_bytes_only():
    quoted = {
        re.sub(r"\s", "", block)
        for block in re.findall(r"```hex\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    }
    assert len(quoted) >= 10
    assert quoted <= set(_hex_strings(VECTORS))


def test_the_document_names_every_message_field_and_error_code():
    words = set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT))
    names = {
        name
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for name in (field.name for field in message.fields)
    }
    assert names - words == set()
    assert set(BY_CODE) - words == set()


def _hex_strings(value):
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, str):
        return [value]
    elif not isinstance(value, list):
        return []
    return [text for item in value for text in _hex_strings(item)]
