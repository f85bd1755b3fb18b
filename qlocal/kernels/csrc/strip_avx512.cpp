// Strips on AVX-512 F, BW, DQ and VL without VNNI.

#include "strip_dot.h"
#include "strip_lanes_avx512.h"
#include "strip_multiply.h"
#include "strip_words.h"

namespace {

struct Avx512Strips : Avx512Rows {
    static QLOCAL_INLINE I multiply_pairs(B w, B x) { return _mm512_maddubs_epi16(w, x); }
    static QLOCAL_INLINE I add_pairs(I pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
    static QLOCAL_INLINE I dot_words(I sum, B w, B x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }

    template <int Largest, int Lines, int First> static QLOCAL_INLINE I dot(const B (&w)[8], const uint8_t* planes) {
        return dot_without_vnni<Avx512Strips, Largest, Lines, First>(w, planes);
    }
};

} // namespace

const qlocal::StripKernels qlocal::avx512_strips = {pack_fixed, multiply_strips<Avx512Strips>, fixed_bytes, false,
                                                    nullptr};
const qlocal::StripKernels qlocal::avx512_words = {pack_words, multiply_words<Avx512Strips>, word_bytes, false,
                                                   nullptr};
