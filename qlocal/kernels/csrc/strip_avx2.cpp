// Strips on AVX2: 8 rows at a time.

#include "strip_dot.h"
#include "strip_multiply.h"
#include "strip_words.h"

namespace {

struct Avx2Strips {
    using B = __m256i;
    using I = __m256i;
    using F = __m256;
    static constexpr int rows = 8, word_vectors = 1, word_strips = 2;

    static QLOCAL_INLINE B load(const uint8_t* at) { return load32(at); }
    static QLOCAL_INLINE B set1_bytes(int value) { return bytes_of(value); }
    static QLOCAL_INLINE B set1_four(const uint8_t* at) { return _mm256_set1_epi32(::load<int32_t>(at)); }
    static QLOCAL_INLINE B and_(B a, B b) { return _mm256_and_si256(a, b); }
    static QLOCAL_INLINE B or_(B a, B b) { return _mm256_or_si256(a, b); }
    static QLOCAL_INLINE B xor_(B a, B b) { return _mm256_xor_si256(a, b); }
    static QLOCAL_INLINE B upper_bytes() { return _mm256_set1_epi16(int16_t(0xff00)); }
    static QLOCAL_INLINE void store(uint8_t* at, B a) { _mm256_store_si256(reinterpret_cast<__m256i*>(at), a); }
    template <int N> static QLOCAL_INLINE B shift_right(B a) { return _mm256_srli_epi16(a, N); }
    template <int N> static QLOCAL_INLINE B shift_left(B a) { return _mm256_slli_epi16(a, N); }
    static QLOCAL_INLINE B look_up(const uint8_t* table, B indices) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), indices);
    }

    static QLOCAL_INLINE I multiply_pairs(B w, B x) { return _mm256_maddubs_epi16(w, x); }
    static QLOCAL_INLINE I add_16(I a, I b) { return _mm256_add_epi16(a, b); }
    static QLOCAL_INLINE B multiply_high(B a, B b) { return _mm256_mulhrs_epi16(a, b); }
    static QLOCAL_INLINE B both_words(I a) { return _mm256_blend_epi16(a, _mm256_slli_epi32(a, 16), 0xaa); }
    static QLOCAL_INLINE I dot_words(I sum, B w, B x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
    static QLOCAL_INLINE I add_pairs(I pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
    static QLOCAL_INLINE I set1_int(int32_t value) { return _mm256_set1_epi32(value); }
    static QLOCAL_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
    static QLOCAL_INLINE I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
    template <int N> static QLOCAL_INLINE I shift_int(I a) { return _mm256_slli_epi32(a, N); }

    static QLOCAL_INLINE F zero() { return _mm256_setzero_ps(); }
    static QLOCAL_INLINE F set1(float value) { return _mm256_set1_ps(value); }
    static QLOCAL_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static QLOCAL_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static QLOCAL_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
    static QLOCAL_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
    static QLOCAL_INLINE F abs(F a) { return _mm256_andnot_ps(set1(-0.0f), a); }
    static QLOCAL_INLINE F zero_unless_above(F value, F a, float limit) {
        return _mm256_and_ps(value, _mm256_cmp_ps(a, set1(limit), _CMP_GT_OQ));
    }
    static QLOCAL_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static QLOCAL_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
    static QLOCAL_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }

    static QLOCAL_INLINE F load_float(const float* at) { return _mm256_loadu_ps(at); }
    static QLOCAL_INLINE void store_float(float* at, F value) { _mm256_storeu_ps(at, value); }
    static QLOCAL_INLINE F load_f16(const uint8_t* at) { return _mm256_cvtph_ps(load128(at)); }
    static QLOCAL_INLINE F load_bf16(const uint8_t* at) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(at)), 16));
    }
    static QLOCAL_INLINE F load_unsigned(const uint8_t* at) { return to_float(_mm256_cvtepu8_epi32(load64(at))); }
    static QLOCAL_INLINE F load_signed(const uint8_t* at) { return to_float(_mm256_cvtepi8_epi32(load64(at))); }
    template <int Shift> static QLOCAL_INLINE F load_nibbles(const uint8_t* at) {
        const I bytes = _mm256_srli_epi32(_mm256_cvtepu8_epi32(load64(at)), Shift);
        return to_float(_mm256_and_si256(bytes, set1_int(15)));
    }

    static QLOCAL_INLINE void store_some(float* at, F value, int64_t count) {
        const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_maskstore_ps(at, _mm256_cmpgt_epi32(set1_int(int32_t(count)), lanes), value);
    }

    template <int Largest, int Lines, int First> static QLOCAL_INLINE I dot(const B (&w)[8], const uint8_t* planes) {
        return dot_without_vnni<Avx2Strips, Largest, Lines, First>(w, planes);
    }

  private:
    static QLOCAL_INLINE __m128i load128(const uint8_t* at) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    }
    static QLOCAL_INLINE __m128i load64(const uint8_t* at) { return _mm_cvtsi64_si128(::load<int64_t>(at)); }
};

} // namespace

const qlocal::StripKernels qlocal::avx2_strips = {pack_fixed, multiply_strips<Avx2Strips>, fixed_bytes, false, nullptr};
const qlocal::StripKernels qlocal::avx2_words = {pack_words, multiply_words<Avx2Strips>, word_bytes, false, nullptr};
