// The kernels for AVX-512 F, BW, DQ and VL: vectors of 16 floats.

#include "quant_matmul.h"

namespace {

struct Avx512 {
    using F = __m512;
    static constexpr int64_t lanes = 16;
    static constexpr int parts = 2;
    static constexpr bool looks_up_16 = true;

    static QLOCAL_INLINE F zero() { return _mm512_setzero_ps(); }
    static QLOCAL_INLINE F set1(float value) { return _mm512_set1_ps(value); }
    static QLOCAL_INLINE F load(const float* at) { return _mm512_loadu_ps(at); }
    static QLOCAL_INLINE void store(float* at, F value) { _mm512_storeu_ps(at, value); }
    static QLOCAL_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    static QLOCAL_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static QLOCAL_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static QLOCAL_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static QLOCAL_INLINE float sum(F value) { return _mm512_reduce_add_ps(value); }

    template <int Part> static QLOCAL_INLINE F widen(__m256i codes) {
        const __m128i half = Part == 0 ? _mm256_castsi256_si128(codes) : _mm256_extracti128_si256(codes, 1);
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(half));
    }

    template <int Shift> static QLOCAL_INLINE __m512i indices(const uint8_t* bytes) {
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
        return Shift == 0 ? wide : _mm512_srli_epi32(wide, Shift);
    }

    // Takes the lowest four bits of each index.
    static QLOCAL_INLINE F look_up(F table, __m512i indices) { return _mm512_permutexvar_ps(indices, table); }

    static QLOCAL_INLINE F load_f16(const uint8_t* at) { return _mm512_cvtph_ps(load32(at)); }

    static QLOCAL_INLINE F load_bf16(const uint8_t* at) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(at)), 16));
    }
};

} // namespace

const qlocal::StoredRowKernels qlocal::avx512_stored_rows = {Avx512::lanes, matmul<Avx512>, decode<Avx512>};
