"""Embeddings of the real small model: neighbours in meaning are neighbours in space."""

from __future__ import annotations

import base64
import struct

import numpy as np
import openai
import pytest

from nodeapp.service.paths import default_cache_dir
from tests.inference.openai_bridge import bridged
from tests.inference.process import end, start, until_ready

NAME = "all-MiniLM-L6-v2.F32.gguf"
SHA256 = "5ea72da0344fc5b841796f2646c76a375f77b821536584fe417044b3cac64197"


@pytest.fixture(scope="module")
def client(model_path, tmp_path_factory):
    path = default_cache_dir() / "models" / NAME
    if not path.is_file():
        pytest.skip(f"{path} is missing: run `make setup-dev`")
    directory = tmp_path_factory.mktemp("embeddings")
    embedding = {"embedding_model_path": f'"{path}"', "embedding_model_sha256": f'"{SHA256}"'}
    child = start(directory, model_path, **embedding)
    socket = directory / "run" / "inference.sock"
    try:
        until_ready(child, socket)
        with bridged(socket) as url:
            yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    finally:
        end(child)


def vectors(client, texts, **more):
    reply = client.embeddings.create(model=NAME, input=texts, encoding_format="float", **more)
    assert [entry.index for entry in reply.data] == list(range(len(reply.data)))
    return np.array([entry.embedding for entry in reply.data]), reply.usage


def test_sentences_of_one_meaning_are_near_and_others_far(client):
    texts = [
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "The girl is carrying a baby.",
        "Quarterly revenue rose by four percent.",
    ]
    found, usage = vectors(client, texts)
    assert found.shape == (4, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosine = found @ found.T
    # sentence-transformers documents 0.7553 for the first pair with this model's weights
    assert cosine[0, 1] == pytest.approx(0.7553, abs=0.01)
    assert cosine[0, 2] < 0.3
    assert cosine[0, 3] < 0.1
    assert usage.prompt_tokens == usage.total_tokens > 20


def test_a_text_has_the_same_vector_alone_and_in_a_batch(client):
    many, _ = vectors(client, [f"sentence number {number}" for number in range(40)])
    one, _ = vectors(client, ["sentence number 7"])
    assert one[0] @ many[7] > 0.9999


def test_base64_is_the_same_vector_in_float32(client):
    plain, _ = vectors(client, ["hello"])
    packed = client.post(
        "/embeddings",
        body={"model": NAME, "input": "hello", "encoding_format": "base64"},
        cast_to=object,
    )
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert np.allclose(struct.unpack("<384f", data), plain[0])
    assert len(client.embeddings.create(model=NAME, input="hello").data[0].embedding) == 384


def test_fewer_dimensions_are_a_prefix_of_unit_length(client):
    whole, _ = vectors(client, ["hello"])
    short, _ = vectors(client, ["hello"], dimensions=64)
    prefix = whole[0, :64]
    assert np.allclose(short[0], prefix / np.linalg.norm(prefix), atol=1e-5)


def test_token_ids_are_taken_too(client):
    assert vectors(client, [[101, 7592, 102]])[0][0] @ vectors(client, ["hello"])[0][0] > 0.9999


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": "word " * 5000}, "tokens, limit 512"),
        ({"input": ""}, "empty"),
        ({"input": ["x"] * 300}, "300 inputs"),
        ({"input": ["x", 5]}, "mixes"),
        ({"input": [[10**7]]}, "vocabulary"),
        ({"input": "x", "dimensions": 4000}, "dimensions"),
        ({"input": "x", "extra_body": {"pooling": "last"}}, "pooling"),
    ],
)
def test_what_cannot_be_embedded_is_refused(client, given, words):
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(model=NAME, **given)
    assert vectors(client, ["alive"])[0].shape == (1, 384)


def test_both_models_are_listed_and_other_names_are_not_found(client):
    assert NAME in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="x")
