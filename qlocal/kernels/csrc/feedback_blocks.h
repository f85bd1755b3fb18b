// What rounding with error feedback is given, and the operation that an instruction set offers.
//
// Plain data and no inline functions: this header is seen by files compiled for different instruction sets.

#pragma once

#include "quantize_blocks.h"

namespace qlocal {

// Columns solved in one call at most.
constexpr int kFeedbackColumns = 256;

// Numbers of the 4-bit groups of AWQ and GPTQ beside those of matrix.h; feedback_blocks.py has the same. A record of
// such a group is its scale (float16), its zero point (byte), a byte of nothing, and a byte a code.
enum AffineGroupType : int32_t {
    SYMMETRIC_32 = 1000, // zero point 8, the scale may be negative
    SYMMETRIC_64,
    SYMMETRIC_128,
    ASYMMETRIC_32,
    ASYMMETRIC_64,
    ASYMMETRIC_128,
};

// Some columns of a matrix, whose rounding errors are made up for by those that follow. Filled by Python
// (feedback_blocks.py, which checks everything below). B = matrix.columns <= kFeedbackColumns, whole groups.
// Columns stand in the order of solving, group after group.
//   matrix.rows: (num_rows, B) F32 targets; blocks: a record a group, in that order, with its columns as the file has
//     them; errors: (num_rows, 2): the loss and nothing, written. fit: WEIGHTED.
//   matrix.importance: (B,) what a fit weighs columns by, above 0; as the file has them, like the records.
//   order: (B,) where a column stands as the file has it: group * columns of a group + its place in the group.
//   spread: (B, B) f32, upper triangular R^-1 of the factor R of these columns.
//   gram: (B, B) f32, R R^T: what the remaining loss of an error is, symmetric.
//   values: (num_rows, B) f32: what is read back; written.
//   rounds: passes over the columns that move single codes afterwards. min_zero: lowest zero point, 0 or 1.
struct FeedbackJob {
    QuantizeJob matrix;
    const int32_t* order;
    const float* spread;
    const float* gram;
    float* values;
    int32_t rounds;
    int32_t min_zero;
};

extern const GroupedRows<FeedbackJob> avx2_feedback;
extern const GroupedRows<FeedbackJob> avx512_feedback;

} // namespace qlocal
