// Rounding with error feedback on the C interface: what ctypes calls (feedback_blocks.py).

#include "feedback_blocks.h"

#include "cpu.h"
#include "run_rows.h"

// Fill the job's blocks, values and errors, on all threads; the result does not depend on how many.
//   isa: one that qlocal_cpu_features allows. job: as feedback_blocks.h says. The caller checks.
extern "C" void qlocal_feedback_blocks(int32_t isa, const qlocal::FeedbackJob* job) {
    const auto& solver = isa >= qlocal::ISA_AVX512 ? qlocal::avx512_feedback : qlocal::avx2_feedback;
    qlocal::run_rows(solver, *job, job->matrix.num_rows);
}
