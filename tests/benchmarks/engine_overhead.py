"""CPU time of the engine besides llama_decode: MODEL PROMPT TOKENS. One thread, no guesses.

The engine as the process runs it, without HTTP; time inside llama_decode is taken by wrapping that
one call. What is left, asyncio side included, is the engine's own. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from nodeapp.inference.engine import Engine, EngineOptions
from nodeapp.inference.llama import LlamaModel, LoadOptions
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.models import ModelFile, check_model
from nodeapp.service.clock import SystemClock
from nodeapp.service.metrics import Metrics
from nodeapp.wire.ipc_inference import Event, GenerateRequest, Produced, Sampling

ANSWERS = 3


async def spent(engine: Engine, inside: list[float], request: GenerateRequest) -> tuple[float, int]:
    """Own CPU-seconds and tokens of one answer."""
    inside[0] = 0.0
    began, tokens = time.process_time(), 0
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            tokens += count(event)
    return time.process_time() - began - inside[0], tokens


def count(event: Event) -> int:
    return len(event.token_ids) if isinstance(event, Produced) else 0


async def main() -> None:
    path, prompt, tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    inside = [0.0]
    decode = LlamaModel.decode

    def timed(model: LlamaModel, batch: object) -> object:
        began = time.thread_time()
        try:
            return decode(model, batch)  # type: ignore[arg-type]  # handed through
        finally:
            inside[0] += time.thread_time() - began

    LlamaModel.decode = timed  # type: ignore[assignment,method-assign]  # the one thing that is measured
    with tempfile.TemporaryDirectory() as directory:
        card = check_model(ModelFile(path, "", "a/b", path.name), Path(directory) / "digests.json")
    load = LoadOptions(
        path=path, kv_tokens=2048, sequences=8, batch_tokens=260, threads=1, gpu_layers=0
    )
    options = EngineOptions(
        context_length=1024,
        max_sequences=4,
        prefill_chunk_tokens=256,
        queue_requests=8,
        slow_reader_seconds=30.0,
        has_speculation=False,
    )
    engine = Engine(card, load, options, clock=SystemClock())
    found: dict[str, float] = {}
    try:
        await engine.start(InferenceMetrics(Metrics("inference")))
        for name, sampling in (
            ("plain", Sampling()),
            ("fingerprints", Sampling(has_fingerprints=True)),
        ):
            request = GenerateRequest(
                "r", prompt_text=prompt, max_tokens=tokens, sampling=sampling, cache_scope="s"
            )
            await spent(engine, inside, request)
            own, decoding, made = 0.0, 0.0, 0
            for _ in range(ANSWERS):
                one, chosen = await spent(engine, inside, request)
                own, decoding, made = own + one, decoding + inside[0], made + chosen
            found |= {f"{name}_own_us": own / made * 1e6, f"{name}_percent": 100 * own / decoding}
            found[f"{name}_decode_us"] = decoding / made * 1e6
    finally:
        await engine.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
