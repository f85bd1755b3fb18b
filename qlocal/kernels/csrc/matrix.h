// What every kernel is given: one weight matrix, and the table of operations an instruction set offers.
//
// Plain data and no inline functions: this header is seen by files compiled for different instruction sets.

#pragma once

#include <cstdint>

namespace qlocal {

// Storage of a matrix. Below 100 the numbers are GGML's; AFFINE_* is our own layout (see affine_layout.py).
enum Storage : int32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    BF16 = 30,
    AFFINE_F16 = 100,  // scales are float16
    AFFINE_BF16 = 101, // scales are bfloat16
};

// A weight (num_rows, columns). Filled by Python (native.py, which checks everything below); layouts must match.
//   data: row n of the model starts at data + (row_map ? row_map[n] : n) * row_bytes; any alignment.
//   columns: a multiple of the storage's block (32 or 256), of group_size for AFFINE_*, anything for floats.
//   group_size: a multiple of 32 for AFFINE_*, else unused.
//   row_map: (num_rows,) or null.
struct Matrix {
    const uint8_t* data;
    const int64_t* row_map;
    int64_t num_rows;
    int64_t columns;
    int64_t row_bytes;
    int64_t group_size;
    int32_t storage;
};

// Activations of 1, 2, 4 or 8 tokens: vectors of `lanes` columns, the tokens of one vector beside each other:
// packed[(k / lanes * tokens + m) * lanes + k % lanes], columns rounded up to 32 and filled with zeros.
struct Activations {
    const float* packed;
    int64_t tokens;
};

// The operations of one instruction set on rows first..last of a matrix. All are safe to call from several
// threads on disjoint rows.
//   matmul: out[m * out_stride + n] = sum over k of x[m, k] * weight[n, k] in float32, for m < stored_tokens.
//   decode: writes the values of rows first..last to out (last - first, columns), contiguous float32.
struct Kernels {
    int64_t lanes;
    void (*matmul)(const Matrix&, const Activations&, float* out, int64_t out_stride, int64_t stored_tokens,
                   int64_t first, int64_t last);
    void (*decode)(const Matrix&, float* out, int64_t first, int64_t last);
};

extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

} // namespace qlocal
