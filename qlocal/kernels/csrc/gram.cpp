// Gram matrices on the C interface: what ctypes calls (gram.py).

#include "gram.h"

#include <algorithm>
#include <new>

#include "scratch.h"
#include "thread_pool.h"

namespace {

// Tokens packed at once: what a strip's columns take of them stays in the second-level cache.
constexpr int64_t kTokens = 1024;

void add_tokens(const qlocal::GramJob& job, int64_t panels) {
    qlocal::parallel(panels, 1, [&](int64_t first, int64_t last) { qlocal::amx_gram.pack(job, first, last); });
    const int64_t strips = (job.columns + qlocal::kStripColumns - 1) / qlocal::kStripColumns;
    qlocal::parallel(strips, 1, [&](int64_t first, int64_t last) {
        for (int64_t strip = first; strip < last; ++strip)
            qlocal::amx_gram.add(job, strip);
    });
}

} // namespace

extern "C" {

// Add sum over t of x[t, i] x[t, j] to gram[i, j] for all j >= i; some elements below the diagonal become scratch.
//   inputs: (tokens, columns) bf16, contiguous, 2-byte aligned. gram: (columns, columns) float32, contiguous.
// Products are exact, sums float32, and the same for every number of threads. For ISA_AMX alone; the caller checks. 0
// when there was no memory for 2,048 bytes a column.
int32_t qlocal_add_gram(const uint16_t* inputs, int64_t tokens, int64_t columns, float* gram) {
    const int64_t panels = (columns + 2 * qlocal::kPanelColumns - 1) / (2 * qlocal::kPanelColumns) * 2;
    const int64_t most =
        std::min((tokens + qlocal::kTileTokens - 1) / qlocal::kTileTokens * qlocal::kTileTokens, kTokens);
    qlocal::AlignedMemory memory;
    uint16_t* packed;
    try {
        packed = static_cast<uint16_t*>(memory.at_least(panels * most * qlocal::kPanelColumns * 2));
    } catch (const std::bad_alloc&) {
        return 0;
    }
    for (int64_t start = 0; start < tokens; start += kTokens) {
        const int64_t count = std::min(tokens - start, kTokens);
        const int64_t tiles = (count + qlocal::kTileTokens - 1) / qlocal::kTileTokens;
        add_tokens({inputs + start * columns, gram, packed, count, columns, tiles}, panels);
    }
    return 1;
}

} // extern "C"
