// What quantizing to GGML blocks is given, and the operation that an instruction set offers.
//
// Plain data and no inline functions: this header is seen by files compiled for different instruction sets.

#pragma once

#include <cstdint>

namespace qlocal {

// How hard to look; the numbers of quantize_blocks.py. PLAIN rounds, SEARCH weighs elements by themselves, WEIGHTED by
// the importance of their columns.
enum class Fit : int32_t { PLAIN = 0, SEARCH = 1, WEIGHTED = 2 };

// One matrix (num_rows, columns) to blocks. Filled by Python (quantize_blocks.py, which checks everything below).
//   rows: F32, F16 or BF16 (`storage`, numbers of matrix.h), `row_bytes` apart; any alignment; finite values.
//   block_type: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K. columns: a multiple of its block.
//   importance: (columns,), above 0, when fit is WEIGHTED, else null.
//   error_weights: (columns,) or null for ones: what the errors are weighted by.
//   blocks: (num_rows, block_row_bytes), contiguous; all of it is written.
//   errors: (num_rows, 2): sums of weight * (x - read back)² and of weight * x² over each row; written.
struct QuantizeJob {
    const uint8_t* rows;
    const float* importance;
    const float* error_weights;
    uint8_t* blocks;
    double* errors;
    int64_t num_rows;
    int64_t columns;
    int64_t row_bytes;
    int64_t block_row_bytes;
    int32_t storage;
    int32_t block_type;
    Fit fit;
};

// An operation on groups of `lanes` rows: does rows first * lanes .. last * lanes; the last group may be cut short by
// the job's num_rows. Groups are independent, so this is safe to call from several threads on disjoint groups.
template <class Job> struct GroupedRows {
    int64_t lanes;
    void (*run)(const Job&, int64_t first, int64_t last);
};

extern const GroupedRows<QuantizeJob> avx2_quantizer;
extern const GroupedRows<QuantizeJob> avx512_quantizer;

} // namespace qlocal
