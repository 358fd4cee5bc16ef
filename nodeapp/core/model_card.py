"""What a model is to the marketplace and to a renter: its registry id and its facts."""

from __future__ import annotations

from dataclasses import dataclass

from Crypto.Hash import keccak

from nodeapp.core.ids import ModelId


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts of one model file, read from its header and its bytes.

    `sha256` is lower-case hex of the whole file; `context_length` is what the model was
    trained for, in tokens; `chat_template` is Jinja source, "" when the file has none.
    """

    model_id: ModelId
    repo: str
    file_name: str
    sha256: str
    size_bytes: int
    architecture: str
    quantisation: str
    context_length: int
    vocabulary_size: int
    chat_template: str


def model_id(repo: str, file_name: str) -> ModelId:
    """The registry's id of a model file.

    Source: ModelRegistry.getModelId: keccak256(abi.encodePacked(repo, "/", fileName)).
    """
    digest = keccak.new(digest_bits=256, data=f"{repo}/{file_name}".encode()).hexdigest()
    return ModelId(f"0x{digest}")
