// Rounding with error feedback on the C interface: what ctypes calls (feedback_blocks.py).

#include "feedback_blocks.h"

#include "cpu.h"
#include "thread_pool.h"

using qlocal::FeedbackJob;
using qlocal::FeedbackSolver;

// Fill the job's blocks, values and errors, on all threads; the result does not depend on how many.
//   isa: one that qlocal_cpu_features allows. job: as feedback_blocks.h says. The caller checks.
extern "C" void qlocal_feedback_blocks(int32_t isa, const FeedbackJob* job) {
    struct Loop {
        const FeedbackSolver& solver;
        const FeedbackJob& job;
    } loop{isa == qlocal::ISA_AVX512 ? qlocal::avx512_feedback : qlocal::avx2_feedback, *job};
    const auto body = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<Loop*>(context);
        l.solver.solve(l.job, first, last);
    };
    const int64_t lanes = loop.solver.lanes;
    qlocal::parallel_rows((job->matrix.num_rows + lanes - 1) / lanes, 1, body, &loop);
}
