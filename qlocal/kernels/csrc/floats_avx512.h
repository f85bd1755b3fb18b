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

    static inline F at_least(F a, F b) { // 1 where a >= b, else 0
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), _mm512_set1_ps(1.0f));
    }
    static inline F copy_sign(F value, F sign) {
        return _mm512_or_ps(value, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
    }

    // Sixteen bytes as numbers: signed, or the lower or upper halves.
    static inline F load_i8(const uint8_t* at) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(at))); }
    static inline F lower_halves(const uint8_t* at) {
        return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_cvtepu8_epi32(bytes(at)), _mm512_set1_epi32(15)));
    }
    static inline F upper_halves(const uint8_t* at) {
        return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(bytes(at)), 4));
    }
    static inline F load_scales(const uint8_t* at) { // upper halves of positive float16
        return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes(at)), 7));
    }
    static inline __m128i bytes(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

    static inline F load_f16(const uint16_t* at) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    }
    static inline void store_f16(uint16_t* at, F value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    }
};

} // namespace
