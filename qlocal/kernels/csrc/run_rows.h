// Running an operation on groups of rows on all threads. For files compiled for every CPU alone: it has code.

#pragma once

#include "quantize_blocks.h"
#include "thread_pool.h"

namespace qlocal {

// Do all `num_rows` of a job; the result does not depend on how many threads there are.
template <class Job> void run_rows(const GroupedRows<Job>& operation, const Job& job, int64_t num_rows) {
    struct Loop {
        const GroupedRows<Job>& operation;
        const Job& job;
    } loop{operation, job};
    const auto body = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<Loop*>(context);
        l.operation.run(l.job, first, last);
    };
    parallel_rows((num_rows + operation.lanes - 1) / operation.lanes, 1, body, &loop);
}

} // namespace qlocal
