// Quantizing on the C interface: what ctypes calls (quantize_blocks.py).

#include "quantize_blocks.h"

#include "cpu.h"
#include "run_rows.h"

// Fill job->blocks and job->errors, on all threads; the result does not depend on how many.
//   isa: one that qlocal_cpu_features allows. job: as quantize_blocks.h says. The caller checks.
extern "C" void qlocal_quantize_blocks(int32_t isa, const qlocal::QuantizeJob* job) {
    const auto& quantizer = isa >= qlocal::ISA_AVX512 ? qlocal::avx512_quantizer : qlocal::avx2_quantizer;
    qlocal::run_rows(quantizer, *job, job->num_rows);
}
