// Strips on AVX-512 with VNNI: four products and their sum in one instruction.

#include "strip_byte_tiles.h"
#include "strip_lanes_avx512.h"
#include "strip_multiply.h"
#include "strip_words.h"

namespace {

struct Avx512VnniStrips : Avx512Rows {
    static constexpr int byte_strips = 3;

    // As text, since GCC 12 would copy every sum to another register and back.
    static QLOCAL_INLINE I dot_words(I sum, B w, B x) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
        return sum;
    }

    static QLOCAL_INLINE I dot_bytes(I sum, B w, B x) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
        return sum;
    }

    template <int Largest, int Lines, int First> static QLOCAL_INLINE I dot(const B (&w)[8], const uint8_t* planes) {
        I sum = _mm512_setzero_si512();
        repeat<Lines>([&](auto line) QLOCAL_INLINE_LAMBDA {
            sum = _mm512_dpbusd_epi32(sum, w[First + line.value], set1_four(planes + 4 * line.value));
        });
        return sum;
    }
};

} // namespace

const qlocal::StripKernels qlocal::avx512_vnni_strips = {pack_fixed, multiply_strips<Avx512VnniStrips>, fixed_bytes,
                                                         false, nullptr};
const qlocal::StripKernels qlocal::avx512_vnni_words = {pack_words, multiply_words<Avx512VnniStrips>, word_bytes, false,
                                                        nullptr};
const qlocal::StripKernels qlocal::avx512_vnni_bytes = {pack_bytes, multiply_bytes<Avx512VnniStrips>, byte_tile_bytes,
                                                        false, nullptr};
