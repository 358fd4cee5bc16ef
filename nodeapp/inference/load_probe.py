"""Child process that loads a stranger's model file first, with nothing to steal and no way out.

`python -m nodeapp.inference.load_probe FILE`. llama.cpp's reader is C++ over untrusted bytes: a
file made for it may crash it or take it over. Here it may read that one file, has no network, no
other programs, no secrets in memory and bounded memory and time. It prints one JSON line; dying
without one is an answer too. Weights are checked for damage (check_tensors), one token is decoded.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import psutil

from nodeapp.core.errors import NodeError
from nodeapp.inference.llama import LlamaModel, LoadOptions, load_library
from nodeapp.security.sandbox import (
    ResourceLimits,
    confine_files,
    limit_resources,
    refuse_network_and_programs,
)
from nodeapp.service.lifecycle import die_with_parent

SPARE_BYTES = 3 << 30
"""For code, context and compute buffers, beside the mapped file."""
BATCH_TOKENS = 32
KV_TOKENS = 256


def main() -> int:
    """Load, tokenise, decode one token, say so."""
    die_with_parent()
    path = Path(sys.argv[1])
    load_library()
    shut_in(path, psutil.Process().memory_info().vms)
    options = LoadOptions(
        path=path,
        kv_tokens=KV_TOKENS,
        sequences=1,
        batch_tokens=BATCH_TOKENS,
        threads=1,
        gpu_layers=0,
        check_tensors=True,
    )
    try:
        model = LlamaModel(options)
    except NodeError as error:
        answer = {"error": error.message}
    else:
        model.tokenise("hello world", add_special=True)
        answer = {"bos_text": model.bos_text, "eos_text": model.eos_text}
        model.close()
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def shut_in(path: Path, mapped_bytes: int) -> None:
    """Give up everything the load does not need.

    Raises:
        Unavailable: the kernel cannot refuse network and programs.
    """
    limits = ResourceLimits(
        address_space_bytes=mapped_bytes + 2 * path.stat().st_size + SPARE_BYTES,
        file_bytes=0,
        open_files=64,
    )
    limit_resources(limits)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    # A kernel without Landlock: no network and no programs still holds.
    confine_files(readable=[path], writable=[])
    refuse_network_and_programs()


if __name__ == "__main__":
    sys.exit(main())
