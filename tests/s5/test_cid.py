"""nodeapp/s5/cid.py against identifiers of Enhanced S5.js."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest
from nodeapp.s5.cid import (
    BlobId,
    blob_id_of,
    cid_of,
    decode_multibase,
    encode_multibase,
    parse_cid,
)
from tests.s5.legacy import legacy_cid_of

HELLO = b"Hello, world!"
HELLO_FORMS = [
    "f5b821eede5c0b10f2ec4979c69b52f61e42ff5b413519ce09be0f14d098dcfe5f6f98d0d",
    "blobb53pfycyq6lwes6ogtnjpmhsc75nucnizzye34dyu2cmnz7s7n6mnbu",
    "zhJTU2Mz5tATfj9rc5xorsXiadvYq3idS4CznEfW9Zg9zfksX2",
    "uW4Ie7eXAsQ8uxJecabUvYeQv9bQTUZzgm-DxTQmNz-X2-Y0N",
    "z4odvyg7EbrxBZ5mJjwSJEr47rdfL4jbVDrBfQnzzwNUup8s6",
]


@pytest.mark.parametrize("text", HELLO_FORMS)
def test_every_written_form_of_a_blob_names_it(text):
    assert parse_cid(text) == blob_id_of(HELLO) == BlobId(blob_id_of(HELLO).hash, 13)


def test_our_form_is_the_base32_one_of_the_js_client():
    assert cid_of(blob_id_of(HELLO)) == HELLO_FORMS[1]
    assert legacy_cid_of(blob_id_of(HELLO)) == HELLO_FORMS[4]
    empty = "blobb5lytjg47l6nbu2qeatpkg3omssm3zms4tlobck34zgutzlsb6mtcaa"
    assert cid_of(blob_id_of(b"")) == empty
    assert parse_cid(empty) == blob_id_of(b"")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
def test_an_identifier_comes_back_as_it_was(digest, size):
    blob = BlobId(digest, size)
    assert parse_cid(cid_of(blob)) == blob
    assert parse_cid(legacy_cid_of(blob)) == blob


@given(st.sampled_from("fbzu"), st.binary(max_size=50))
def test_every_base_comes_back_as_it_was(base, data):
    assert decode_multibase(encode_multibase(base, data)) == data


@given(st.text(max_size=120))
def test_other_text_is_refused_and_nothing_else_happens(text):
    try:
        parse_cid(text)
    except InvalidRequest:
        return
    assert text[0] in "fbzu"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        HELLO_FORMS[1].upper(),
        HELLO_FORMS[1] + "=",
        HELLO_FORMS[1][:-2],
        HELLO_FORMS[0] + "00",
        HELLO_FORMS[0].replace("1e", "1f", 1),
        HELLO_FORMS[0][:-2],
        "x" + HELLO_FORMS[1][1:],
        "z" + "0" * 40,
        "f" + "5b821e" + "00" * 32 + "01" * 9,
        "../../etc/passwd",
    ],
)
def test_a_text_that_is_no_canonical_identifier_is_refused(text):
    with pytest.raises(InvalidRequest):
        parse_cid(text)


def test_an_unknown_base_is_not_written():
    with pytest.raises(InvalidRequest):
        encode_multibase("q", b"")
