// Peaks of AVX-512 without VNNI and BF16.

#include "peak_loop.h"

namespace {

int64_t int8(int64_t rounds) {
    const __m512i a = _mm512_set1_epi8(1), ones = _mm512_set1_epi16(1);
    const auto step = [=](__m512i sum) {
        __m512i b = a;
        __asm__ volatile("" : "+v"(b));
        return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(b, a), ones));
    };
    return run_chains(_mm512_setzero_si512(), step, rounds, 2 * 64);
}

int64_t bf16(int64_t rounds) {
    const __m512 a = _mm512_set1_ps(0.5f);
    return run_chains(a, [=](__m512 sum) { return _mm512_fmadd_ps(a, sum, a); }, rounds, 2 * 16);
}

} // namespace

const qlocal::Peaks qlocal::avx512_peaks = {int8, bf16};
