// Sixteen blocks beside each other in AVX-512 registers; see block_search.h for how they are used.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace {

struct Avx512Lanes {
    using F = __m512;
    typedef int32_t I __attribute__((vector_size(64)));
    static constexpr int lanes = 16;

    static inline F set1(float value) { return _mm512_set1_ps(value); }
    static inline F load(const float* at) { return _mm512_loadu_ps(at); }
    static inline F load_f16(const uint8_t* at) { return _mm512_cvtph_ps(load256(at)); }
    static inline F load_bf16(const uint8_t* at) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(at)), 16));
    }
    static inline void store(float* at, F value) { _mm512_storeu_ps(at, value); }
    static inline void store(int32_t* at, I value) { _mm512_storeu_si512(at, __m512i(value)); }

    // Of two equal values, and where one is not a number: the second.
    static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
    static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
    static inline F sqrt(F value) { return _mm512_sqrt_ps(value); }
    static inline F abs(F value) { return _mm512_abs_ps(value); }
    static inline I to_int(F value) { return I(_mm512_cvtps_epi32(value)); }    // to the nearest, ties to even
    static inline I truncate(F value) { return I(_mm512_cvttps_epi32(value)); } // towards zero
    static inline F to_float(I value) { return _mm512_cvtepi32_ps(__m512i(value)); }

    // Whether a comparison holds anywhere.
    template <class M> static inline bool any(M mask) {
        return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
    }

    static inline F fused_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }   // a b + c
    static inline F fused_less(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); } // c - a b

    // The bits of the nearest float16, and the values of such bits.
    static inline I half_bits(F value) {
        return I(_mm512_cvtepu16_epi32(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT)));
    }
    static inline F half_value(I bits) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(__m512i(bits))); }

    // Elements of a and b in turn, from the lower halves or the upper ones.
    static inline F interleave_low(F a, F b) {
        return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    }
    static inline F interleave_high(F a, F b) {
        return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }

  private:
    static inline __m256i load256(const uint8_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
};

} // namespace
