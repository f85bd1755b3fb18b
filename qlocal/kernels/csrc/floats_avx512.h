// Sixteen floats in AVX-512 registers: what the step's operations are written with.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace {

struct Avx512Floats {
    using F = __m512;
    static constexpr int64_t lanes = 16;
    static constexpr int row_tile = 8; // rows of queries whose sums stay in registers together

    static inline F zero() { return _mm512_setzero_ps(); }
    static inline F set1(float value) { return _mm512_set1_ps(value); }
    static inline F load(const float* at) { return _mm512_loadu_ps(at); }
    static inline void store(float* at, F value) { _mm512_storeu_ps(at, value); }
    static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
    static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
    static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); } // a b + c
    static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
    static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
    static inline F round(F value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT); }
    static inline F scale(F value, F power) { return _mm512_scalef_ps(value, power); } // value 2^power
    static inline float sum(F value) { return _mm512_reduce_add_ps(value); }
    static inline float largest(F value) { return _mm512_reduce_max_ps(value); }

    static inline F load_f16(const uint16_t* at) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    }
    static inline void store_f16(uint16_t* at, F value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    }
};

} // namespace
