// A strip in AVX-512 registers: all 16 rows. Without `dot`, which is what VNNI changes.

#pragma once

#include "blocks.h"

namespace {

struct Avx512Rows {
    using B = __m512i;
    using I = __m512i;
    using F = __m512;
    static constexpr int rows = 16, word_vectors = 3, word_strips = 3;

    static QLOCAL_INLINE B load(const uint8_t* at) { return _mm512_loadu_si512(at); }
    static QLOCAL_INLINE B set1_bytes(int value) { return _mm512_set1_epi8(char(value)); }
    static QLOCAL_INLINE B set1_four(const uint8_t* at) { return _mm512_set1_epi32(::load<int32_t>(at)); }
    static QLOCAL_INLINE B and_(B a, B b) { return _mm512_and_si512(a, b); }
    static QLOCAL_INLINE B or_(B a, B b) { return _mm512_or_si512(a, b); }
    static QLOCAL_INLINE B xor_(B a, B b) { return _mm512_xor_si512(a, b); }
    static QLOCAL_INLINE B upper_bytes() { return _mm512_set1_epi16(int16_t(0xff00)); }
    static QLOCAL_INLINE void store(uint8_t* at, B a) { _mm512_store_si512(at, a); }
    template <int N> static QLOCAL_INLINE B shift_right(B a) { return _mm512_srli_epi16(a, N); }
    template <int N> static QLOCAL_INLINE B shift_left(B a) { return _mm512_slli_epi16(a, N); }
    static QLOCAL_INLINE B look_up(const uint8_t* table, B indices) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load128(table)), indices);
    }

    static QLOCAL_INLINE B add_16(B a, B b) { return _mm512_add_epi16(a, b); }
    static QLOCAL_INLINE B multiply_high(B a, B b) { return _mm512_mulhrs_epi16(a, b); }
    static QLOCAL_INLINE B both_words(I a) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(a, 16)); }

    static QLOCAL_INLINE I set1_int(int32_t value) { return _mm512_set1_epi32(value); }
    static QLOCAL_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
    static QLOCAL_INLINE I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
    template <int N> static QLOCAL_INLINE I shift_int(I a) { return _mm512_slli_epi32(a, N); }

    static QLOCAL_INLINE F zero() { return _mm512_setzero_ps(); }
    static QLOCAL_INLINE F set1(float value) { return _mm512_set1_ps(value); }
    static QLOCAL_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static QLOCAL_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    static QLOCAL_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static QLOCAL_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
    static QLOCAL_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    static QLOCAL_INLINE F abs(F a) { return _mm512_abs_ps(a); }
    static QLOCAL_INLINE F zero_unless_above(F value, F a, float limit) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, set1(limit), _CMP_GT_OQ), value);
    }
    static QLOCAL_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static QLOCAL_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    static QLOCAL_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }

    static QLOCAL_INLINE F load_float(const float* at) { return _mm512_loadu_ps(at); }
    static QLOCAL_INLINE void store_float(float* at, F value) { _mm512_storeu_ps(at, value); }
    static QLOCAL_INLINE F load_f16(const uint8_t* at) { return _mm512_cvtph_ps(load32(at)); }
    static QLOCAL_INLINE F load_bf16(const uint8_t* at) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(at)), 16));
    }
    static QLOCAL_INLINE F load_unsigned(const uint8_t* at) { return to_float(_mm512_cvtepu8_epi32(load128(at))); }
    static QLOCAL_INLINE F load_signed(const uint8_t* at) { return to_float(_mm512_cvtepi8_epi32(load128(at))); }
    template <int Shift> static QLOCAL_INLINE F load_nibbles(const uint8_t* at) {
        const I bytes = _mm512_srli_epi32(_mm512_cvtepu8_epi32(load128(at)), Shift);
        return to_float(_mm512_and_si512(bytes, set1_int(15)));
    }

    static QLOCAL_INLINE void store_some(float* at, F value, int64_t count) {
        _mm512_mask_storeu_ps(at, __mmask16((1u << count) - 1), value);
    }

  private:
    static QLOCAL_INLINE __m128i load128(const uint8_t* at) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    }
};

} // namespace
