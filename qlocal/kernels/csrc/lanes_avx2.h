// Eight blocks beside each other in AVX2 registers; see block_search.h for how they are used.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace {

struct Avx2Lanes {
    using F = __m256;
    typedef int32_t I __attribute__((vector_size(32)));
    static constexpr int lanes = 8;

    static inline F set1(float value) { return _mm256_set1_ps(value); }
    static inline F load(const float* at) { return _mm256_loadu_ps(at); }
    static inline F load_f16(const uint8_t* at) { return _mm256_cvtph_ps(load128(at)); }
    static inline F load_bf16(const uint8_t* at) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(at)), 16));
    }
    static inline void store(float* at, F value) { _mm256_storeu_ps(at, value); }
    static inline void store(int32_t* at, I value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), __m256i(value));
    }

    // Of two equal values, and where one is not a number: the second.
    static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
    static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
    static inline F sqrt(F value) { return _mm256_sqrt_ps(value); }
    static inline F abs(F value) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value); }
    static inline I to_int(F value) { return I(_mm256_cvtps_epi32(value)); }    // to the nearest, ties to even
    static inline I truncate(F value) { return I(_mm256_cvttps_epi32(value)); } // towards zero
    static inline F to_float(I value) { return _mm256_cvtepi32_ps(__m256i(value)); }

    // Whether a comparison holds anywhere.
    template <class M> static inline bool any(M mask) { return _mm256_movemask_ps(__m256(mask)) != 0; }

    static inline F fused_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }   // a b + c
    static inline F fused_less(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); } // c - a b

    // The bits of the nearest float16, and the values of such bits.
    static inline I half_bits(F value) {
        return I(_mm256_cvtepu16_epi32(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT)));
    }
    static inline F half_value(I bits) {
        const __m256i packed = _mm256_packus_epi32(__m256i(bits), __m256i(bits));
        return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
    }

    // Elements of a and b in turn, from the lower halves or the upper ones.
    static inline F interleave_low(F a, F b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
    static inline F interleave_high(F a, F b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

  private:
    static inline __m128i load128(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
};

} // namespace
