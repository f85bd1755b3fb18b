// Eight floats in AVX2 registers: what the step's operations are written with.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace {

struct Avx2Floats {
    using F = __m256;
    static constexpr int64_t lanes = 8;
    static constexpr int row_tile = 4; // rows of queries whose sums stay in registers together

    static inline F zero() { return _mm256_setzero_ps(); }
    static inline F set1(float value) { return _mm256_set1_ps(value); }
    static inline F load(const float* at) { return _mm256_loadu_ps(at); }
    static inline void store(float* at, F value) { _mm256_storeu_ps(at, value); }
    static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
    static inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static inline F div(F a, F b) { return _mm256_div_ps(a, b); }
    static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); } // a b + c
    static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
    static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
    static inline F round(F value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

    // value 2^power, for powers of normal numbers.
    static inline F scale(F value, F power) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent));
    }
    static inline float sum(F value) {
        const __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    }
    static inline float largest(F value) {
        const __m128 half = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
    }

    static inline F at_least(F a, F b) { // 1 where a >= b, else 0
        return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), _mm256_set1_ps(1.0f));
    }
    static inline F copy_sign(F value, F sign) {
        return _mm256_or_ps(value, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
    }

    // Eight bytes as numbers: signed, or the lower or upper halves.
    static inline F load_i8(const uint8_t* at) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(at))); }
    static inline F lower_halves(const uint8_t* at) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_cvtepu8_epi32(bytes(at)), _mm256_set1_epi32(15)));
    }
    static inline F upper_halves(const uint8_t* at) {
        return _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_cvtepu8_epi32(bytes(at)), 4));
    }
    static inline F load_scales(const uint8_t* at) { // upper halves of positive float16
        return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes(at)), 7));
    }
    static inline __m128i bytes(const uint8_t* at) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)); }

    static inline F load_f16(const uint16_t* at) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    }
    static inline void store_f16(uint16_t* at, F value) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    }
};

} // namespace
