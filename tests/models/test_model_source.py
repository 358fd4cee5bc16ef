"""The text forms of a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeapp.core.errors import InvalidRequest
from nodeapp.inference.model_source import FileSource, WebSource, parse_source
from nodeapp.s5.cid import blob_id_of, cid_of

HUB = "https://hub.example/base"
BLOB = blob_id_of(b"a model")
CID = cid_of(BLOB)


def test_a_path_is_a_file():
    assert parse_source("models/a.gguf") == FileSource(Path("models/a.gguf"))


def test_an_address_keeps_its_query_and_names_the_file():
    source = parse_source("https://x.example/d/M.gguf?download=1")
    assert source == WebSource("https://x.example/d/M.gguf?download=1", "M.gguf")


@pytest.mark.parametrize("form", [f"s5:{CID}", f"s5://{CID}"])
def test_an_s5_blob_carries_hash_and_size(form):
    source = parse_source(form, portal_url="http://127.0.0.1:5050/")
    assert source.url == f"http://127.0.0.1:5050/s5/blob/{CID}"
    assert (source.blake3, source.size_bytes) == (BLOB.hex, 7)


def test_a_hub_file_is_an_address_under_the_operators_base():
    source = parse_source("hub:own.er/re-po/sub/M.Q4.gguf@v1.2", hub_url=HUB + "/")
    assert source == WebSource(
        f"{HUB}/own.er/re-po/resolve/v1.2/sub/M.Q4.gguf", "M.Q4.gguf", repo="own.er/re-po"
    )
    assert "/resolve/main/" in parse_source("hub:a/b/c.gguf", hub_url=HUB).url


@pytest.mark.parametrize(
    ("text", "hub", "why"),
    [
        ("ftp://x/m.gguf", HUB, "not an https address"),
        ("https:///m.gguf", HUB, "not an https address"),
        ("https://[::1/m.gguf", HUB, "not an https address"),
        ("https://user:pw@x/m.gguf", HUB, "user name"),
        ("s5:zzz", HUB, "cid"),
        ("hub:a/b", HUB, "owner/repo"),
        ("hub:a/b/c.bin", HUB, "owner/repo"),
        ("hub:../b/c.gguf", HUB, "owner/repo"),
        ("hub:a/b/../../c.gguf", HUB, "owner/repo"),
        ("hub:a/b/c.gguf@ma in", HUB, "owner/repo"),
        ("hub:a/b/c.gguf", "", "inference.hub_url"),
    ],
)
def test_other_forms_are_refused(text, hub, why):
    with pytest.raises(InvalidRequest, match=why):
        parse_source(text, hub_url=hub, portal_url="https://portal.example")
