// Threads that wait for loops over rows. They spin for some microseconds after a loop, since the next matrix of a
// layer follows soon, and then sleep.

#pragma once

#include <cstdint>

namespace qlocal {

// Work on rows first..last.
using RowsBody = void (*)(void* context, int64_t first, int64_t last);

// Use `count` threads from now on, the calling one included; at least 1. Waits for a loop that is running.
void set_threads(int32_t count);
int32_t get_threads();

// Call body over all of 0..total in pieces of `step` rows, on all threads; returns when all are done. Callers on
// several threads take turns. In a child of fork, the threads are started anew.
void parallel_rows(int64_t total, int64_t step, RowsBody body, void* context);

// The same for anything that can be called with (first, last).
template <class Body> void parallel(int64_t total, int64_t step, const Body& body) {
    const auto call = [](void* context, int64_t first, int64_t last) {
        (*static_cast<const Body*>(context))(first, last);
    };
    parallel_rows(total, step, call, const_cast<Body*>(&body));
}

} // namespace qlocal
