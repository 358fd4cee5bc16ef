// Matrix products for batches of a few rows: Q4_1 and Q8_0 weights, AVX-512 VNNI.
//
// llama.cpp multiplies Q4_1 by one dot product after the other, so that a batch of n rows costs n
// steps, and Q8_0 by tiles that leave the widest registers half empty. Here 16 rows of weights are
// transposed once, 32 bits at a time, so that every lane of a register is a row of its own; then
// every column of the batch takes one VPDPBUSD for 64 products. What is computed for a column does
// not depend on the other columns: a batch gives bit for bit what its rows give one by one.
//
// The linker puts __wrap_llamafile_sgemm before llama.cpp's llamafile_sgemm (--wrap, see
// llama-targets.cmake); what is not ours is handed on. Contract as there: C[n][m] = A[m][k] B[n][k],
// k in blocks of 32, lda, ldb in blocks, ldc in floats; true when it was computed here.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"
#include "ggml-cpu-impl.h"
#include "ggml.h"

#include <immintrin.h>

#include <cstdint>
#include <vector>

extern "C" {
bool __real_llamafile_sgemm(const ggml_compute_params *, int64_t, int64_t, int64_t, const void *,
                            int64_t, const void *, int64_t, void *, int64_t, int, int, int);
bool __wrap_llamafile_sgemm(const ggml_compute_params *, int64_t, int64_t, int64_t, const void *,
                            int64_t, const void *, int64_t, void *, int64_t, int, int, int);
// The kinds of weights that are computed here on this processor, "" for none; for tests.
__attribute__((visibility("default"))) const char * fabstir_batch_gemm(void);
}

#pragma GCC diagnostic ignored "-Wuninitialized"  // the compiler's own intrinsics, GCC 12
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")

namespace {

constexpr int64_t ROWS = 16;    // of weights in a tile: 32-bit lanes of a register
constexpr int64_t COLUMNS = 8;  // of the batch at once: as many sums stay in registers
constexpr int WORDS = 8;        // 32-bit words in a block of 32 bytes

// A block of a column: its scale, and what else is needed of it.
struct Scale {
    float d;
    union {
        float s;       // Q8_1: sum of the values
        int32_t bias;  // Q8_0: what the weights' offset of 128 adds to the sum, negative
    };
};

inline float half(ggml_half value) { return _cvtsh_ss(value); }

// Rows 4q + r of a tile, one 128-bit word of each, as a 4 x 4 transposition per 128-bit lane.
inline void transpose(const uint8_t * base, int64_t stride, __m512i out[4]) {
    __m512i r[4];
    for (int q = 0; q < 4; q++) {
        const uint8_t * at = base + q * stride;
        const auto word = [&](int row) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i *>(at + row * stride));
        };
        r[q] = _mm512_castsi128_si512(word(0));
        r[q] = _mm512_inserti32x4(r[q], word(4), 1);
        r[q] = _mm512_inserti32x4(r[q], word(8), 2);
        r[q] = _mm512_inserti32x4(r[q], word(12), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

// The first word of 16 rows.
inline __m512i first_words(const uint8_t * base, int64_t stride) {
    const auto four = [&](int row) {
        const auto word = [&](int i) {
            return *reinterpret_cast<const int32_t *>(base + (row + i) * stride);
        };
        return _mm_setr_epi32(word(0), word(1), word(2), word(3));
    };
    __m512i out = _mm512_castsi128_si512(four(0));
    out = _mm512_inserti32x4(out, four(4), 1);
    out = _mm512_inserti32x4(out, four(8), 2);
    return _mm512_inserti32x4(out, four(12), 3);
}

inline void prefetch(const uint8_t * at, int64_t bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) {
        _mm_prefetch(reinterpret_cast<const char *>(at + byte), _MM_HINT_T1);
    }
}

struct Q4_1 {
    using Weights = block_q4_1;
    using Column = block_q8_1;

    struct alignas(64) Packed {
        __m512i nibbles[4];
        __m512 d, m;
    };

    // Four blocks of a row are 20 words, five times four: their scales come along for nothing.
    static void pack(const uint8_t * base, int64_t stride, int64_t k, Packed * out) {
        static_assert(sizeof(Weights) == 20, "scale, minimum and 16 bytes of nibbles");
        int64_t block = 0;
        for (; block + 4 <= k; block += 4) {
            __m512i words[20];
            prefetch(base + ROWS * stride + block * ROWS * 20, 4 * ROWS * 20);
            for (int part = 0; part < 5; part++) {
                transpose(base + block * 20 + part * 16, stride, words + 4 * part);
            }
            for (int i = 0; i < 4; i++) {
                put(words + 5 * i, out[block + i]);
            }
        }
        for (; block < k; block++) {
            __m512i words[5];
            words[0] = first_words(base + block * 20, stride);
            transpose(base + block * 20 + 4, stride, words + 1);
            put(words, out[block]);
        }
    }

    static void put(const __m512i words[5], Packed & out) {
        out.d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words[0]));
        out.m = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words[0], 16)));
        for (int j = 0; j < 4; j++) {
            out.nibbles[j] = words[1 + j];
        }
    }

    static void unpack(const Packed & packed, __m512i words[WORDS]) {
        const __m512i low = _mm512_set1_epi8(15);
        for (int j = 0; j < 4; j++) {
            words[j] = _mm512_and_si512(packed.nibbles[j], low);
            words[4 + j] = _mm512_and_si512(_mm512_srli_epi16(packed.nibbles[j], 4), low);
        }
    }

    static Scale scale(const Column & column) {
        Scale out;
        out.d = half(column.data.data.d);
        out.s = half(column.data.data.s);
        return out;
    }

    static __m512i begin(const Scale &) { return _mm512_setzero_si512(); }

    static __m512 add(__m512 sum, __m512i products, const Packed & packed, const Scale & scale) {
        const __m512 d = _mm512_mul_ps(packed.d, _mm512_set1_ps(scale.d));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), d, sum);
        return _mm512_fmadd_ps(packed.m, _mm512_set1_ps(scale.s), sum);
    }
};

struct Q8_0 {
    using Weights = block_q8_0;
    using Column = block_q8_0;

    struct alignas(64) Packed {
        __m512i words[WORDS];
        __m512 d;
    };

    static void pack(const uint8_t * base, int64_t stride, int64_t k, Packed * out) {
        // VPDPBUSD takes weights without sign: all are 128 higher, which `bias` takes off again.
        const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
        const uint8_t * first = base;
        for (int64_t block = 0; block < k; block++, base += sizeof(Weights)) {
            prefetch(first + ROWS * stride + block * ROWS * int64_t(sizeof(Weights)), ROWS * sizeof(Weights));
            __m512i words[WORDS];
            const uint8_t * values = base + offsetof(Weights, qs);
            transpose(values, stride, words);
            transpose(values + 16, stride, words + 4);
            for (int j = 0; j < WORDS; j++) {
                out[block].words[j] = _mm512_xor_si512(words[j], sign);
            }
            out[block].d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(first_words(base, stride)));
        }
    }

    static void unpack(const Packed & packed, __m512i words[WORDS]) {
        for (int j = 0; j < WORDS; j++) {
            words[j] = packed.words[j];
        }
    }

    static Scale scale(const Column & column) {
        Scale out;
        out.d = half(column.d);
        int32_t sum = 0;
        for (int i = 0; i < QK8_0; i++) {
            sum += column.qs[i];
        }
        out.bias = -128 * sum;
        return out;
    }

    static __m512i begin(const Scale & scale) { return _mm512_set1_epi32(scale.bias); }

    static __m512 add(__m512 sum, __m512i products, const Packed & packed, const Scale & scale) {
        const __m512 d = _mm512_mul_ps(packed.d, _mm512_set1_ps(scale.d));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), d, sum);
    }
};

// One tile of weights by N columns.
template <class Q, int N>
void multiply(const typename Q::Packed * tile, int64_t k, const typename Q::Column * columns,
              int64_t ldb, const Scale * scales, float * out, int64_t ldc) {
    __m512 sums[N];
    for (int n = 0; n < N; n++) {
        sums[n] = _mm512_setzero_ps();
    }
    for (int64_t block = 0; block < k; block++) {
        __m512i words[WORDS];
        Q::unpack(tile[block], words);
        for (int n = 0; n < N; n++) {
            const Scale & scale = scales[n * k + block];
            const int32_t * values =
                reinterpret_cast<const int32_t *>(columns[n * ldb + block].qs);
            __m512i products = Q::begin(scale);
            for (int j = 0; j < WORDS; j++) {
                products = _mm512_dpbusd_epi32(products, words[j], _mm512_set1_epi32(values[j]));
            }
            sums[n] = Q::add(sums[n], products, tile[block], scale);
        }
    }
    for (int n = 0; n < N; n++) {
        _mm512_storeu_ps(out + n * ldc, sums[n]);
    }
}

template <class Q>
void multiply_some(int64_t count, const typename Q::Packed * tile, int64_t k,
                   const typename Q::Column * columns, int64_t ldb, const Scale * scales,
                   float * out, int64_t ldc) {
    switch (count) {
        case 1: return multiply<Q, 1>(tile, k, columns, ldb, scales, out, ldc);
        case 2: return multiply<Q, 2>(tile, k, columns, ldb, scales, out, ldc);
        case 3: return multiply<Q, 3>(tile, k, columns, ldb, scales, out, ldc);
        case 4: return multiply<Q, 4>(tile, k, columns, ldb, scales, out, ldc);
        case 5: return multiply<Q, 5>(tile, k, columns, ldb, scales, out, ldc);
        case 6: return multiply<Q, 6>(tile, k, columns, ldb, scales, out, ldc);
        case 7: return multiply<Q, 7>(tile, k, columns, ldb, scales, out, ldc);
        default: return multiply<Q, COLUMNS>(tile, k, columns, ldb, scales, out, ldc);
    }
}

template <class Q>
bool product(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * A,
             int64_t lda, const void * B, int64_t ldb, float * C, int64_t ldc) {
    using Weights = typename Q::Weights;
    using Column = typename Q::Column;
    using Packed = typename Q::Packed;
    if (m % ROWS != 0 || n < 1) {
        return false;
    }
    const Weights * weights = static_cast<const Weights *>(A);
    const Column * columns = static_cast<const Column *>(B);
    thread_local std::vector<Scale> scales;
    thread_local std::vector<Packed> tile;
    if (scales.size() < size_t(n * k)) {
        scales.resize(n * k);
    }
    if (tile.size() < size_t(k)) {
        tile.resize(k);
    }
    for (int64_t column = 0; column < n; column++) {
        for (int64_t block = 0; block < k; block++) {
            scales[column * k + block] = Q::scale(columns[column * ldb + block]);
        }
    }
    const int64_t tiles = m / ROWS;
    const int64_t end = (params->ith + 1) * tiles / params->nth;
    for (int64_t at = params->ith * tiles / params->nth; at < end; at++) {
        const int64_t stride = lda * int64_t(sizeof(Weights));
        const uint8_t * base = reinterpret_cast<const uint8_t *>(weights + at * ROWS * lda);
        Q::pack(base, stride, k, tile.data());
        for (int64_t column = 0; column < n; column += COLUMNS) {
            const int64_t count = n - column < COLUMNS ? n - column : COLUMNS;
            multiply_some<Q>(count, tile.data(), k, columns + column * ldb, ldb,
                             scales.data() + column * k, C + column * ldc + at * ROWS, ldc);
        }
    }
    return true;
}

}  // namespace

#pragma GCC pop_options

static bool has_instructions() {
    static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512vnni");
    return has;
}

const char * fabstir_batch_gemm(void) { return has_instructions() ? "q4_1 q8_0" : ""; }

bool __wrap_llamafile_sgemm(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k,
                            const void * A, int64_t lda, const void * B, int64_t ldb, void * C,
                            int64_t ldc, int Atype, int Btype, int Ctype) {
    if (Ctype == GGML_TYPE_F32 && !params->use_ref && has_instructions()) {
        float * out = static_cast<float *>(C);
        if (Atype == GGML_TYPE_Q4_1 && Btype == GGML_TYPE_Q8_1 &&
            product<Q4_1>(params, m, n, k, A, lda, B, ldb, out, ldc)) {
            return true;
        }
        if (Atype == GGML_TYPE_Q8_0 && Btype == GGML_TYPE_Q8_0 &&
            product<Q8_0>(params, m, n, k, A, lda, B, ldb, out, ldc)) {
            return true;
        }
    }
    return __real_llamafile_sgemm(params, m, n, k, A, lda, B, ldb, C, ldc, Atype, Btype, Ctype);
}
