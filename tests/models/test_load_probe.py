"""Files that pass the header check and break llama.cpp do so in the sandboxed child only."""

from __future__ import annotations

import contextlib
import struct
import sys
import textwrap

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.inference import probe as probes
from nodeapp.inference.gguf import read_header
from nodeapp.inference.probe import Prober
from nodeapp.security.sandbox import landlock_version
from tests.fakes import gguf_file as gf
from tests.fakes.tiny_model import TOKENS, float32, int32s, tiny_model

NAN = float("nan")
CRASH = {
    "weights that are no numbers everywhere": {
        "epsilon": float32("llama.attention.layer_norm_rms_epsilon", NAN)
    },
    "tokens all the same": {
        "tokens": gf.strings("tokenizer.ggml.tokens", ["x"] * len(TOKENS)),
    },
}
REFUSED = {
    "heads that do not divide the width": {"head_count": gf.u32("llama.attention.head_count", 7)},
    "more blocks than tensors": {"block_count": gf.u32("llama.block_count", 2)},
    "width of another size": {"embedding_length": gf.u32("llama.embedding_length", 64)},
    "token types of another length": {"token_type": int32s("tokenizer.ggml.token_type", [1] * 7)},
    "unknown tokenizer": {"model": gf.string("tokenizer.ggml.model", "evil")},
    "another vocabulary than the tensors": {
        "tokens": gf.strings("tokenizer.ggml.tokens", TOKENS[:200]),
        "token_type": int32s("tokenizer.ggml.token_type", [1] * 200),
    },
}


@pytest.fixture
def prober(tmp_path):
    return Prober(tmp_path / "verdicts.json", seconds=20)


def write(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


async def test_a_good_model_loads_and_says_its_texts(tmp_path, prober):
    verdict = await prober.probe(write(tmp_path, tiny_model()), "a" * 64)
    assert (verdict.error, verdict.eos_text) == ("", "<|im_end|>")


@pytest.mark.parametrize("name", REFUSED)
async def test_what_llama_refuses_is_refused_with_its_reason(tmp_path, prober, name):
    path = write(tmp_path, tiny_model(**REFUSED[name]))
    read_header(path)
    with pytest.raises(InvalidRequest, match=r"llama.cpp refuses m.gguf: .*[a-z]{4}"):
        await prober.probe(path, "a" * 64)


@pytest.mark.parametrize("name", CRASH)
async def test_what_crashes_the_loader_is_named_and_remembered(tmp_path, prober, name, monkeypatch):
    path = write(tmp_path, tiny_model(**CRASH[name]))
    read_header(path)
    with pytest.raises(InvalidRequest, match=r"crashed the loader \(SIG[A-Z]+\)"):
        await prober.probe(path, "a" * 64)
    monkeypatch.setattr(probes.sys, "executable", "/nowhere")
    with pytest.raises(InvalidRequest, match="crashed the loader"):
        await prober.probe(path, "a" * 64)


async def test_flipped_bytes_never_get_past_the_child(tmp_path, prober):
    """Whatever a flip does, this process lives and hears a typed answer."""
    good = tiny_model()
    for place in range(40, 900, 167):
        bad = bytearray(good)
        bad[place] ^= 0x55
        path = write(tmp_path, bytes(bad))
        with contextlib.suppress(InvalidRequest):
            read_header(path)
            await prober.probe(path, f"{place:064x}")


async def test_weights_that_are_no_numbers_are_found(tmp_path, prober):
    data = bytearray(tiny_model())
    data[-4096:] = struct.pack("<1024f", *[NAN] * 1024)
    with pytest.raises(InvalidRequest, match=r"llama\.cpp refuses"):
        await prober.probe(write(tmp_path, bytes(data)), "a" * 64)


async def test_a_loader_that_hangs_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "_environment", dict)
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(probes.sys, "executable", str(sleeper))
    prober = Prober(tmp_path / "v.json", seconds=0.2)
    with pytest.raises(InvalidRequest, match="did not load inside 0 s in the sandbox"):
        await prober.probe(write(tmp_path, tiny_model()), "a" * 64)
    assert not (tmp_path / "v.json").exists()


async def test_a_loader_that_cannot_start_is_no_verdict(tmp_path, prober, monkeypatch):
    monkeypatch.setattr(probes.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="ended with code 1"):
        await prober.probe(write(tmp_path, tiny_model()), "a" * 64)
    monkeypatch.undo()
    assert (await prober.probe(tmp_path / "m.gguf", "a" * 64)).error == ""


async def test_a_loader_that_was_taken_over_is_not_believed(tmp_path, prober, monkeypatch):
    liar = tmp_path / "python"
    liar.write_text('#!/bin/sh\necho \'{"error": "", "bos_text": [1]}\'\n')
    liar.chmod(0o755)
    monkeypatch.setattr(probes.sys, "executable", str(liar))
    with pytest.raises(Unavailable, match="no message"):
        await prober.probe(write(tmp_path, tiny_model()), "a" * 64)


@pytest.mark.skipif(landlock_version() < 4, reason="kernel without Landlock")
async def test_the_loader_reads_no_key_and_opens_no_socket(tmp_path):
    """The same giving up as the child's, then what a taken-over child would try."""
    import asyncio

    model = write(tmp_path, tiny_model())
    key = tmp_path / "wallet.json"
    key.write_text("secret")
    code = textwrap.dedent(
        """
        import os, socket, sys
        from pathlib import Path
        from nodeapp.inference.load_probe import shut_in
        shut_in(Path(sys.argv[1]), 4 << 30)
        tries = (
            lambda: Path(sys.argv[2]).read_bytes(),
            lambda: Path("/etc/passwd").read_bytes(),
            lambda: Path(sys.argv[1]).write_bytes(b""),
            lambda: socket.socket(socket.AF_INET),
            lambda: socket.socket(socket.AF_UNIX),
            lambda: os.execv("/bin/sh", ["sh"]),
            lambda: os.fork(),
            lambda: Path("/proc/1/environ").read_bytes(),
        )
        for attempt in tries:
            try:
                attempt()
                print("done")
            except PermissionError:
                print("refused")
        print(len(Path(sys.argv[1]).read_bytes()))
        """
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(model), str(key), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await child.communicate()
    assert said.decode().split() == ["refused"] * 8 + [str(model.stat().st_size)]
