"""Products of quantised matrices by small batches, as the built llama.cpp computes them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

F32, Q4_1, Q8_0 = 0, 3, 8
BLOCK = 32
BYTES = {Q4_1: 20, Q8_0: 34}


class InitParameters(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class Ggml:
    """The few functions of ggml that multiply two matrices."""

    def __init__(self):
        folder = Path(llama_cpp.__file__).parent / "lib"
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"))
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        for name, result, arguments in (
            ("ggml_init", pointer, [InitParameters]),
            ("ggml_free", None, [pointer]),
            ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, integer, integer]),
            ("ggml_get_data", pointer, [pointer]),
            ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
            ("ggml_new_graph", pointer, [pointer]),
            ("ggml_build_forward_expand", None, [pointer, pointer]),
        ):
            function = getattr(self.base, name)
            function.restype, function.argtypes = result, arguments
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.base.ggml_quantize_chunk.argtypes = [
            *(ctypes.c_int, pointer, pointer, integer, integer, integer, pointer)
        ]
        self.cpu.ggml_cpu_init()
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
        self.cpu.fabstir_batch_gemm.restype = ctypes.c_char_p
        self.own = self.cpu.fabstir_batch_gemm().decode().split()

    def quantised(self, kind, weights):
        rows, columns = weights.shape
        out = np.zeros((rows, columns // BLOCK * BYTES[kind]), np.uint8)
        source = np.ascontiguousarray(weights, np.float32)
        count = self.base.ggml_quantize_chunk(
            kind, source.ctypes.data, out.ctypes.data, 0, rows, columns, None
        )
        assert count == out.nbytes
        return out

    def product(self, kind, weights, batch, *, threads=1):
        """weights (m, bytes), batch (n, k) -> (n, k) @ weights.T, as floats (n, m)."""
        n, k = batch.shape
        m = len(weights)
        size = weights.nbytes + batch.nbytes + 4 * n * m + (4 << 20)
        context = self.base.ggml_init(InitParameters(size, None, False))
        try:
            left = self.base.ggml_new_tensor_2d(context, kind, k, m)
            right = self.base.ggml_new_tensor_2d(context, F32, k, n)
            ctypes.memmove(self.base.ggml_get_data(left), weights.ctypes.data, weights.nbytes)
            ctypes.memmove(self.base.ggml_get_data(right), batch.ctypes.data, batch.nbytes)
            result = self.base.ggml_mul_mat(context, left, right)
            graph = self.base.ggml_new_graph(context)
            self.base.ggml_build_forward_expand(graph, result)
            assert self.cpu.ggml_graph_compute_with_ctx(context, graph, threads) == 0
            at = ctypes.cast(self.base.ggml_get_data(result), ctypes.POINTER(ctypes.c_float))
            return np.ctypeslib.as_array(at, (n, m)).copy()
        finally:
            self.base.ggml_free(context)


@pytest.fixture(scope="module")
def ggml():
    return Ggml()


def restored(kind, weights):
    """What the quantised weights stand for."""
    blocks = weights.reshape(len(weights), -1, BYTES[kind])
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float64)
    if kind == Q8_0:
        values = blocks[..., 2:].view(np.int8) * scale
    else:
        least = blocks[..., 2:4].copy().view(np.float16).astype(np.float64)
        nibbles = blocks[..., 4:]
        values = np.concatenate((nibbles & 15, nibbles >> 4), axis=-1) * scale + least
    return values.reshape(len(weights), -1)


def rounded(batch):
    """The batch in blocks of 8 bits, as llama.cpp takes it."""
    blocks = batch.reshape(len(batch), -1, BLOCK).astype(np.float64)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return (np.rint(blocks / scale) * scale).reshape(batch.shape)


def matrices(ggml, kind, *, m, n, k, seed=5):
    chance = np.random.default_rng(seed)
    weights = ggml.quantised(kind, chance.standard_normal((m, k)) + 0.3)
    return weights, chance.standard_normal((n, k)).astype(np.float32)


@pytest.mark.parametrize("kind", [Q4_1, Q8_0])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (16, 1, 32),
        (48, 2, 7 * 32),
        (576, 3, 576),
        (192, 8, 1536),
        (32, 9, 5 * 32),
        (64, 33, 224),
        (40, 5, 96),  # rows that fill no tile are llama.cpp's
    ],
)
def test_a_product_is_what_the_numbers_say(ggml, kind, m, n, k):
    weights, batch = matrices(ggml, kind, m=m, n=n, k=k)
    found = ggml.product(kind, weights, batch)
    wanted = rounded(batch) @ restored(kind, weights).T
    assert np.abs(found - wanted).max() < 2e-3 * np.sqrt(k)


@pytest.mark.parametrize("kind", [Q4_1, Q8_0])
def test_a_batch_gives_bit_for_bit_what_its_rows_give_alone(ggml, kind):
    if not ggml.own:
        pytest.skip("this processor has no AVX-512 VNNI: llama.cpp's own kernels compute")
    weights, batch = matrices(ggml, kind, m=96, n=11, k=18 * 32)
    together = ggml.product(kind, weights, batch)
    for count in (1, 2, 5, 8):
        apart = [ggml.product(kind, weights, batch[at : at + count]) for at in range(0, 11, count)]
        assert np.array_equal(np.concatenate(apart), together)


@pytest.mark.parametrize("kind", [Q4_1, Q8_0])
def test_threads_share_the_rows_without_changing_the_result(ggml, kind):
    weights, batch = matrices(ggml, kind, m=16 * 7, n=4, k=64)
    alone = ggml.product(kind, weights, batch)
    assert np.array_equal(ggml.product(kind, weights, batch, threads=3), alone)


def test_the_kernels_are_in_where_the_processor_can_run_them(ggml):
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    can = {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= set(flags)
    assert ggml.own == (["q4_1", "q8_0"] if can else [])
