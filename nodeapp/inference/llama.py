"""Thin typed adapter over llama.cpp's C interface. The only file importing llama_cpp.

Rules: one thread calls the methods that touch the context (decode, remove, copy, save, restore);
tokenise and piece only read the vocabulary and may be called from any thread; close() waits for
them. A logits view is valid until the next decode. The KV cache is unified: in split mode a partial
copy aborts the process.

Environment, read when the library is loaded, so the supervisor's program file sets it:
GGML_NO_BACKTRACE=1, or ggml's abort handler forks a debugger that outlives the crash;
GOMP_SPINCOUNT=1000, so that a thread waiting at a barrier soon gives its core to other processes:
as quick as libgomp's 300000 on an idle machine (2 cores, 135M model, 120 tokens/s), and 62 tokens/s
against 26 beside a compiler; and OMP_WAIT_POLICY=active, or libgomp spins 100 times only when it
counts more threads than cores (loading and decoding are two teams): sleeping at every barrier made
it 55 tokens/s instead of 95.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nodeapp.core.errors import Corrupt, InvalidRequest, Unavailable
from nodeapp.inference.llama_log import error_log
from nodeapp.inference.sampling import Logits
from nodeapp.inference.step import MAX_DRAFT_TOKENS, Rows

_CONTROL_ATTRIBUTES = 1 | 8
"""LLAMA_TOKEN_ATTR_UNKNOWN, LLAMA_TOKEN_ATTR_CONTROL: parsed out of text as special tokens."""
_NO_SLOT, _ABORTED = 1, 2
_TIMED_ROUNDS = 3
_BYTES = ctypes.POINTER(ctypes.c_uint8)

Saved = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load: cells and batch in tokens; `gpu_layers` -1 is all of them."""

    path: Path
    kv_tokens: int
    sequences: int
    batch_tokens: int
    threads: int
    gpu_layers: int
    decode_threads: int = 0
    """For a batch of one token, which waits for memory, not for cores; 0: as `threads`."""
    devices: tuple[int, ...] = ()
    """CUDA's numbers of the GPUs to use when `gpu_layers` is not 0; (): llama.cpp's choice."""
    split: tuple[float, ...] = ()
    """One share of the blocks for each of `devices`, when there are several."""
    check_tensors: bool = False
    """Look at every weight for values that are none; reads the whole file."""


def load_library() -> None:
    """Map llama.cpp's libraries and start its backends; files may be out of reach later."""
    import llama_cpp

    llama_cpp.llama_backend_init()


class NoRoom(Exception):
    """llama_decode found no KV cells; its state is as before the call."""


class Aborted(Exception):
    """abort() was called; what was computed of the batch is in the cache."""


class LlamaModel:
    """One loaded model with one context."""

    def __init__(self, options: LoadOptions) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._log = error_log()
        self._log.forget()
        self._api.llama_backend_init()
        self._abort_flag = ctypes.create_string_buffer(b"\x00", 2)
        self._model: Any = None
        self._context: Any = None
        self._readers = 0
        self._is_closed = False
        self._gate = threading.Condition()
        """Guards the two: nobody reads the vocabulary while it is freed."""
        self._load(options)
        self._vocabulary: Any = self._api.llama_model_get_vocab(self._model)
        self._memory: Any = self._api.llama_get_memory(self._context)
        self._batch = _Batch(self._api, options.batch_tokens)
        self._pieces: dict[int, bytes] = {}
        self.vocabulary_size: int = self._api.llama_vocab_n_tokens(self._vocabulary)
        self._row_type = ctypes.c_float * self.vocabulary_size
        self.kv_tokens: int = self._api.llama_n_ctx(self._context)
        """Cells really there: llama.cpp rounds what was asked for up."""
        self.trained_context_length: int = self._api.llama_model_n_ctx_train(self._model)
        self.bos_text = self._special_text(self._api.llama_vocab_bos(self._vocabulary))
        self.eos_text = self._special_text(self._api.llama_vocab_eos(self._vocabulary))
        self.end_token_ids, self.control_texts = self._scan_vocabulary()
        self._warm_up()

    def tokenise(self, text: str, *, add_special: bool) -> list[int]:
        """Text to ids; control texts in it become control tokens (see chat.ControlText).

        Raises:
            InvalidRequest: llama.cpp cannot.
            Unavailable: the model was closed.
        """
        data = text.encode()
        capacity = len(data) + 8
        ids = (ctypes.c_int32 * capacity)()
        parse_special = True
        with self._reading():
            count: int = self._api.llama_tokenize(
                self._vocabulary, data, len(data), ids, capacity, add_special, parse_special
            )
        if count < 0:
            raise InvalidRequest(f"text of {len(data)} bytes cannot be tokenised")
        return list(ids[:count])

    def piece(self, token_id: int) -> bytes:
        """The bytes a token stands for; control tokens have none."""
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._read_piece(token_id, is_special=False)
        return known

    def remove(self, sequence: int, start: int) -> bool:
        """Drop cells from position `start`; False when this model cannot drop a part."""
        return bool(self._api.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def copy(self, source: int, target: int, end: int) -> None:
        """Share the source's cells [0, end) with the target."""
        self._api.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def saved_bytes(self, sequence: int) -> int:
        """What `save` would take."""
        size: int = self._api.llama_state_seq_get_size(self._context, sequence)
        return size

    def save(self, sequence: int) -> Saved:
        """The sequence's cells as bytes in the host's memory.

        Raises:
            Corrupt: llama.cpp wrote another number of bytes than it had announced.
        """
        size = self.saved_bytes(sequence)
        saved = np.empty(size, np.uint8)
        count = self._api.llama_state_seq_get_data(
            self._context, saved.ctypes.data_as(_BYTES), size, sequence
        )
        if count != size:
            raise Corrupt(f"llama.cpp saved {count} of {size} bytes of a sequence")
        return saved

    def restore(self, sequence: int, saved: Saved) -> bool:
        """Put saved cells into the empty sequence; False when there is no room for them."""
        count = self._api.llama_state_seq_set_data(
            self._context, saved.ctypes.data_as(_BYTES), saved.size, sequence
        )
        return bool(count == saved.size)

    def decode(self, batch: Sequence[Rows]) -> list[Logits]:
        """Compute one batch.

        Returns:
            For every entry with `is_last`, in order, 1 + `drafts` views (vocabulary,) float32 that
            are valid until the next decode.

        Raises:
            NoRoom, Aborted: see there.
            Corrupt: the backend failed; the context can no longer be trusted.
        """
        outputs = self._batch.fill(batch)
        code: int = self._api.llama_decode(self._context, self._batch.native)
        if code == _NO_SLOT:
            raise NoRoom
        if code == _ABORTED:
            raise Aborted
        if code != 0:
            raise Corrupt(f"llama_decode returned {code}: {self._log.text}")
        return [self._logits(index) for index in outputs]

    def abort(self) -> None:
        """End the running decode early and every later one at once; for shutting down."""
        self._abort_flag[0] = b"\x01"

    def close(self) -> None:
        """Free context and model, as soon as no thread reads the vocabulary any more.

        Afterwards texts and unknown pieces are refused; nothing else may be called.
        """
        with self._gate:
            self._is_closed = True
            self._gate.wait_for(lambda: not self._readers)
        if self._context is not None:
            self._api.llama_free(self._context)
        if self._model is not None:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._gate:
            if self._is_closed:
                raise Unavailable("the model was unloaded", retry_after_seconds=1.0)
            self._readers += 1
        try:
            yield
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    def _load(self, options: LoadOptions) -> None:
        api = self._api
        model_parameters = api.llama_model_default_params()
        model_parameters.n_gpu_layers = options.gpu_layers
        model_parameters.check_tensors = options.check_tensors
        shares = self._place(model_parameters, options)
        self._model = api.llama_model_load_from_file(str(options.path).encode(), model_parameters)
        del shares  # llama.cpp reads them while it loads
        if not self._model:
            self._model = None
            raise InvalidRequest(f"llama.cpp refuses {options.path.name}: {self._log.text}")
        parameters = api.llama_context_default_params()
        parameters.n_ctx = options.kv_tokens
        parameters.n_batch = parameters.n_ubatch = options.batch_tokens
        parameters.n_seq_max = options.sequences
        parameters.n_outputs_max = options.sequences + MAX_DRAFT_TOKENS
        parameters.n_threads = options.decode_threads or options.threads
        parameters.n_threads_batch = options.threads
        parameters.kv_unified = True
        parameters.no_perf = True
        # libc's strlen as callback: it is asked some 500 times a decode and needs no GIL.
        parameters.abort_callback = ctypes.cast(
            ctypes.CDLL(None).strlen, type(parameters.abort_callback)
        )
        parameters.abort_callback_data = ctypes.addressof(self._abort_flag)
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            self._context = None
            self.close()
            raise Unavailable(
                f"no context of {options.kv_tokens} tokens for {options.path.name}: "
                f"{self._log.text or 'not enough memory'}"
            )

    def _place(self, parameters: Any, options: LoadOptions) -> object:  # noqa: ANN401  # no stubs
        """Which GPUs; returns the array of shares, to be kept until the model is loaded."""
        if not (options.gpu_layers and options.devices and self._api.llama_supports_gpu_offload()):
            return None
        if len(options.devices) == 1:
            parameters.split_mode = self._api.LLAMA_SPLIT_MODE_NONE
            parameters.main_gpu = options.devices[0]
            return None
        shares = (ctypes.c_float * max(self._api.llama_max_devices(), 1 + max(options.devices)))()
        for device, share in zip(options.devices, options.split, strict=True):
            shares[device] = share
        parameters.split_mode = self._api.LLAMA_SPLIT_MODE_LAYER
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        return shares

    def _warm_up(self) -> None:
        """One decode maps the weights in, so that the first renter does not wait for the disk."""
        self.decode((Rows(0, 0, 0, (0,), is_last=True),))
        self.remove(0, 0)

    def batch_costs(self, sizes: Sequence[int]) -> tuple[tuple[int, float], ...]:
        """(rows, time by that of one row) for batches of one row and of these many; timed.

        Never falling: what else the machine does must not make a larger batch look cheaper. For
        the thread that owns the context, while it is empty.
        """
        wanted = (1, *sizes)
        rounds = [[self._time(rows) for rows in wanted] for _ in range(_TIMED_ROUNDS)]
        best = [min(times) for times in zip(*rounds, strict=True)]
        ratios = accumulate((seconds / best[0] for seconds in best), max)
        return tuple(zip(wanted, ratios, strict=True))

    def _time(self, rows: int) -> float:
        began = time.perf_counter()
        self.decode((Rows(0, 0, 0, (0,) * rows, is_last=True, drafts=rows - 1),))
        spent = time.perf_counter() - began
        self.remove(0, 0)
        return spent

    def _scan_vocabulary(self) -> tuple[frozenset[int], tuple[str, ...]]:
        ends: set[int] = set()
        texts: list[str] = []
        for token_id in range(self.vocabulary_size):
            if self._api.llama_vocab_get_attr(self._vocabulary, token_id) & _CONTROL_ATTRIBUTES:
                texts.append(self._special_text(token_id))
            if self._api.llama_vocab_is_eog(self._vocabulary, token_id):
                ends.add(token_id)
        return frozenset(ends), tuple(text for text in texts if text)

    def _special_text(self, token_id: int) -> str:
        if token_id < 0:
            return ""
        return self._read_piece(token_id, is_special=True).decode(errors="replace")

    def _read_piece(self, token_id: int, *, is_special: bool) -> bytes:
        count = 0
        for capacity in (64, 4096):
            buffer = ctypes.create_string_buffer(capacity)
            with self._reading():
                count = self._api.llama_token_to_piece(
                    self._vocabulary, token_id, buffer, capacity, 0, is_special
                )
            if count >= 0:
                return buffer.raw[:count]
        raise Corrupt(f"token {token_id} has a text of {-count} bytes")

    def _logits(self, index: int) -> Logits:
        pointer = self._api.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise Corrupt(f"no logits for batch row {index}")
        row = self._row_type.from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(row, np.float32)


class _Batch:
    """A llama_batch over arrays of our own, filled through numpy: 2 us instead of 29."""

    def __init__(self, api: Any, capacity: int) -> None:  # noqa: ANN401  # llama_cpp has no stubs
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        whole = ctypes.POINTER(ctypes.c_int32)
        base = self._sequences.ctypes.data
        self._rows = (whole * capacity)(
            *(ctypes.cast(base + 4 * index, whole) for index in range(capacity))
        )
        self.native: Any = api.llama_batch(
            0,
            self._tokens.ctypes.data_as(whole),
            None,
            self._positions.ctypes.data_as(whole),
            self._counts.ctypes.data_as(whole),
            self._rows,
            self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, batch: Sequence[Rows]) -> list[int]:
        """Write the rows; returns the batch indices whose logits are wanted."""
        at = 0
        wanted: list[int] = []
        for rows in batch:
            end = at + len(rows.token_ids)
            self._tokens[at:end] = rows.token_ids
            self._positions[at:end] = np.arange(rows.start, rows.start + end - at)
            self._sequences[at:end] = rows.slot
            self._outputs[at:end] = 0
            if rows.is_last:
                self._outputs[end - 1 - rows.drafts : end] = 1
                wanted += range(end - 1 - rows.drafts, end)
            at = end
        self.native.n_tokens = at
        return wanted
