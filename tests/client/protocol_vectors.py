"""The worked examples of docs/protocol.md, made by the product's own code.

`python -m tests.client.protocol_vectors > tests/vectors/protocol.json` writes them anew; do that
only for a new protocol version, since every other implementation is checked against the file.
"""

import hashlib
import json
import sys

from nodeapp.core.ids import Address, JobId, ModelId, PeerId
from nodeapp.core.units import PricePerToken
from nodeapp.core.usage import extend_hash, initial_hash
from nodeapp.network.identity import identity_from_seed
from nodeapp.security.wallet import address_of, public_key_of, sign_digest
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import (
    RECORD_VERSION,
    CapabilityRecord,
    ModelOffer,
    encode_record,
    peer_signed_bytes,
)
from nodeapp.wire.envelope import encode
from nodeapp.wire.framing import encode_frame
from nodeapp.wire.provider_key import any_host_key, provider_key
from nodeapp.wire.signed import (
    capability_digest,
    domain_separator,
    login_digest,
    receipt_digest,
)

RENTER_KEY = b"\x01" * 32
HOST_KEY = b"\x02" * 32
CHAIN_ID = 31337
MARKETPLACE = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
USDC = Address("0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512")
JOB = JobId(7)
MODEL = ModelId("0x" + "ab" * 32)
RENTER_PEER = PeerId("12D3KooWPqT2nMDSiXUSx5D7fasaxhxKigVhcqfkKqrLghCq9jxz")
HOST_IDENTITY = identity_from_seed(b"\x03" * 32)
HOST_PEER = HOST_IDENTITY.peer_id
REQUEST_ID = "000102030405060708090a0b0c0d0e0f"
CHALLENGE = bytes(range(32))
BATCHES = ((19556, 28), (339,))


def build():
    separator = domain_separator(CHAIN_ID, MARKETPLACE)
    hashes = [initial_hash(CHAIN_ID, MARKETPLACE, JOB)]
    for ids in BATCHES:
        hashes.append(extend_hash(hashes[-1], ids))
    return {
        "session": {"chain_id": CHAIN_ID, "marketplace": MARKETPLACE, "job_id": JOB},
        "provider_keys": {
            "model_id": MODEL,
            "model": provider_key(MODEL, CHAIN_ID),
            "any_host": any_host_key(CHAIN_ID),
        },
        "domain_separator": separator.hex(),
        "running_hashes": [
            {"ids": list(ids), "hash": value.hex()}
            for ids, value in zip(((), *BATCHES), hashes, strict=True)
        ],
        "signatures": (signatures := _signatures(separator, hashes[-1])),
        "envelopes": _envelopes(signatures, hashes[-1]),
    }


def _signatures(separator, running_hash):
    tokens = sum(map(len, BATCHES))
    record = encode_record(_record())
    return {
        "login": {
            "renter_peer_id": RENTER_PEER,
            "host_peer_id": HOST_PEER,
            "challenge": CHALLENGE.hex(),
            **_signed(RENTER_KEY, login_digest(separator, RENTER_PEER, HOST_PEER, CHALLENGE)),
        },
        "receipt": {
            "tokens": tokens,
            "running_hash": running_hash.hex(),
            **_signed(RENTER_KEY, receipt_digest(separator, JOB, tokens, running_hash)),
        },
        "capability": {
            "record": record.hex(),
            **_signed(HOST_KEY, capability_digest(separator, record)),
            "peer_signature": HOST_IDENTITY.sign(peer_signed_bytes(record)).hex(),
        },
    }


def _signed(key, digest):
    return {
        "private_key": key.hex(),
        "signer": address_of(public_key_of(key)),
        "digest": digest.hex(),
        "signature": sign_digest(key, digest).hex(),
    }


def _record():
    return CapabilityRecord(
        version=RECORD_VERSION,
        chain_id=CHAIN_ID,
        marketplace=MARKETPLACE,
        wallet=address_of(public_key_of(HOST_KEY)),
        public_key=public_key_of(HOST_KEY),
        peer_id=HOST_PEER,
        addresses=(f"/ip4/203.0.113.7/tcp/9000/p2p/{HOST_PEER}",),
        portal_url="https://portal.example",
        models=(
            ModelOffer(
                model_id=MODEL,
                name="example/Example-GGUF/example.gguf",
                sha256=hashlib.sha256(b"example").hexdigest(),
                context_length=4096,
                quantisation="Q4_1",
                asset=USDC,
                price_per_token=PricePerToken(2000),
            ),
        ),
        free_slots=4,
        proof_mode="ledger",
        sequence=1_700_000_000,
        not_after=1_700_003_600,
    )


def _envelopes(signatures, running_hash):
    def signature(name):
        return bytes.fromhex(signatures[name]["signature"])

    renter = signatures["login"]["signer"]
    host = signatures["capability"]["signer"]
    turns = [pb.Message(role="user", content="Hi")]
    return [
        _example("hello", pb.Hello(min_version=1, max_version=1, agent="example/1")),
        _example(
            "welcome",
            pb.Welcome(
                version=1,
                agent="fabstir-node/0.1",
                challenge=CHALLENGE,
                chain_id=CHAIN_ID,
                marketplace=MARKETPLACE,
                host=host,
            ),
        ),
        _example("login", pb.Login(renter=renter, signature=signature("login"))),
        _example("login_accepted", pb.LoginAccepted()),
        _example("open", pb.Open(job_id=JOB)),
        _example(
            "session_state",
            pb.SessionState(
                job_id=JOB,
                phase="active",
                affordable=250_000,
                acknowledged=3,
                running_hash=running_hash,
                claimed=0,
                open_request=REQUEST_ID,
            ),
        ),
        _example(
            "generate",
            pb.Generate(
                request_id=REQUEST_ID,
                model_id=MODEL,
                messages=turns,
                max_tokens=200,
                sampling=pb.Sampling(temperature=0.5, top_p=0.75, seed=42),
                stop=["\n\n"],
            ),
        ),
        _example(
            "generate",
            pb.Generate(
                request_id=REQUEST_ID,
                model_id=MODEL,
                messages=[
                    pb.Message(role="user", content="Weather in Rome?"),
                    pb.Message(
                        role="assistant",
                        tool_calls=[
                            pb.ToolCall(id="c1", name="weather", arguments='{"city":"Rome"}')
                        ],
                    ),
                    pb.Message(role="tool", content="rain", tool_call_id="c1"),
                ],
                max_tokens=200,
                sampling=pb.Sampling(repeat_penalty=1.5, logprobs=True, top_logprobs=2),
                tools=[pb.Tool(name="weather", parameters='{"type":"object"}')],
                tool_choice="auto",
                json_schema='{"type":"object"}',
            ),
            name="generate_with_tools",
        ),
        _example(
            "started",
            pb.Started(request_id=REQUEST_ID, first_token=0, next_token=2, max_tokens=200),
        ),
        _example("tokens", pb.Tokens(first_token=0, ids=BATCHES[0], text="Hello!")),
        _example(
            "receipt",
            pb.Receipt(
                job_id=JOB,
                tokens=sum(map(len, BATCHES)),
                running_hash=running_hash,
                signature=signature("receipt"),
            ),
        ),
        _example(
            "end",
            pb.End(
                request_id=REQUEST_ID, finish_reason="stop", prompt_tokens=31, completion_tokens=3
            ),
        ),
        _example("cancel", pb.Cancel(request_id=REQUEST_ID)),
        _example(
            "error", pb.Error(code="busy", message="too many handshakes", retry_after_ms=60_000)
        ),
        _example("close", pb.Close(job_id=JOB)),
        _example("ping", pb.Ping(nonce=7)),
        _example("pong", pb.Pong(nonce=7)),
        _example("capability_request", pb.CapabilityRequest()),
        _example("capability_list", pb.CapabilityList()),
        _example(
            "capability",
            pb.Capability(
                record=bytes.fromhex(signatures["capability"]["record"]),
                signature=signature("capability"),
                peer_signature=bytes.fromhex(signatures["capability"]["peer_signature"]),
            ),
        ),
        _example("result_request", pb.ResultRequest(cid="blobb26nwk")),
        _example("result_data", pb.ResultData(total_bytes=5, data=b"hello")),
        _example("dial_back_request", pb.DialBackRequest(ports=[9000])),
        _example(
            "dial_back_reply",
            pb.DialBackReply(
                observed_address="203.0.113.7",
                results=[pb.DialBackResult(port=9000, reachable=False, reason="timed out")],
            ),
        ),
    ]


def _example(body, message, name=""):
    encoded = encode(**{body: message})
    return {
        "name": name or body,
        "body": body,
        "fields": _fields(message),
        "envelope": encoded.hex(),
        "frame": encode_frame(encoded).hex(),
    }


def _fields(message):
    return {field.name: _plain(value) for field, value in message.ListFields()}


def _plain(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str | int | float):
        return value
    if hasattr(value, "ListFields"):
        return _fields(value)
    return [_plain(item) for item in value]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build(), indent=2) + "\n")
