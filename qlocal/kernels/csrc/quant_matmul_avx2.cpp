// The kernels for AVX2 with FMA and F16C: vectors of 8 floats.

#include "quant_matmul.h"

namespace {

struct Avx2 {
    using F = __m256;
    static constexpr int64_t lanes = 8;
    static constexpr int parts = 4;
    static constexpr bool looks_up_16 = false;

    static QLOCAL_INLINE F zero() { return _mm256_setzero_ps(); }
    static QLOCAL_INLINE F set1(float value) { return _mm256_set1_ps(value); }
    static QLOCAL_INLINE F load(const float* at) { return _mm256_loadu_ps(at); }
    static QLOCAL_INLINE void store(float* at, F value) { _mm256_storeu_ps(at, value); }
    static QLOCAL_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
    static QLOCAL_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static QLOCAL_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

    template <int Part> static QLOCAL_INLINE F widen(__m256i codes) {
        const __m128i half = Part < 2 ? _mm256_castsi256_si128(codes) : _mm256_extracti128_si256(codes, 1);
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(Part % 2 ? _mm_srli_si128(half, 8) : half));
    }

    static QLOCAL_INLINE float sum(F value) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }

    static QLOCAL_INLINE F load_f16(const uint8_t* at) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    }

    static QLOCAL_INLINE F load_bf16(const uint8_t* at) {
        const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    }
};

} // namespace

const qlocal::StoredRowKernels qlocal::avx2_stored_rows = {Avx2::lanes, matmul<Avx2>, decode<Avx2>};
