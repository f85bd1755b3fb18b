// Peaks of AVX-512 with VNNI; its bfloat16 is float32, since CPUs with the one need not have the other.

#include "peak_loop.h"

namespace {

int64_t int8(int64_t rounds) {
    const __m512i a = _mm512_set1_epi8(1);
    const auto step = [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, a, a); };
    return run_chains(_mm512_setzero_si512(), step, rounds, 2 * 64);
}

int64_t bf16(int64_t rounds) { return qlocal::avx512_peaks.bf16(rounds); }

} // namespace

const qlocal::Peaks qlocal::avx512_vnni_peaks = {int8, bf16};
