// Quantizing on the C interface: what ctypes calls (quantize_blocks.py).

#include "quantize_blocks.h"

#include "cpu.h"
#include "thread_pool.h"

using qlocal::QuantizeJob;
using qlocal::Quantizer;

// Fill job->blocks and job->errors, on all threads; the result does not depend on how many.
//   isa: one that qlocal_cpu_features allows. job: as quantize_blocks.h says. The caller checks.
extern "C" void qlocal_quantize_blocks(int32_t isa, const QuantizeJob* job) {
    struct Loop {
        const Quantizer& quantizer;
        const QuantizeJob& job;
    } loop{isa == qlocal::ISA_AVX512 ? qlocal::avx512_quantizer : qlocal::avx2_quantizer, *job};
    const auto body = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<Loop*>(context);
        l.quantizer.quantize(l.job, first, last);
    };
    const int64_t lanes = loop.quantizer.lanes;
    qlocal::parallel_rows((job->num_rows + lanes - 1) / lanes, 1, body, &loop);
}
