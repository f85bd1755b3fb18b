// Peaks of AVX2 and FMA. Eight-bit products need three instructions: without VNNI there is no sum in 32 bits.

#include "peak_loop.h"

namespace {

int64_t int8(int64_t rounds) {
    const __m256i a = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    const auto step = [=](__m256i sum) {
        __m256i b = a;
        __asm__ volatile("" : "+v"(b));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(b, a), ones));
    };
    return run_chains(_mm256_setzero_si256(), step, rounds, 2 * 32);
}

int64_t bf16(int64_t rounds) {
    const __m256 a = _mm256_set1_ps(0.5f);
    return run_chains(a, [=](__m256 sum) { return _mm256_fmadd_ps(a, sum, a); }, rounds, 2 * 8);
}

} // namespace

const qlocal::Peaks qlocal::avx2_peaks = {int8, bf16};
