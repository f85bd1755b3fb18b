#include "peak.h"

#include <atomic>

#include "cpu.h"
#include "thread_pool.h"

namespace {

using qlocal::Peaks;

const Peaks& peaks_of(int32_t isa) {
    switch (isa) {
    case qlocal::ISA_AMX:
        return qlocal::amx_peaks;
    case qlocal::ISA_AVX512_VNNI:
        return qlocal::avx512_vnni_peaks;
    case qlocal::ISA_AVX512:
        return qlocal::avx512_peaks;
    default:
        return qlocal::avx2_peaks;
    }
}

} // namespace

// Run the int8 (kind 0) or bf16 (kind 1) operations of `isa`, one that qlocal_cpu_features allows, on all threads, in
// pieces of `rounds` turns. Returns how many operations that were; the caller takes the time.
extern "C" int64_t qlocal_peak(int32_t isa, int32_t kind, int64_t rounds) {
    const auto run = kind == 0 ? peaks_of(isa).int8 : peaks_of(isa).bf16;
    std::atomic<int64_t> operations{0};
    qlocal::parallel(8 * int64_t(qlocal::get_threads()), 1, [&](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece)
            operations += run(rounds);
    });
    return operations;
}
