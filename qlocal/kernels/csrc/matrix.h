// What every kernel is given: one weight matrix, the activations it is multiplied with, and the tables of operations
// that an instruction set offers. multiply.h puts them together.
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

// How the rows lie in memory: one after another as they are stored, or sixteen beside each other (strip_layout.h).
// BF16_ROWS: BF16 as stored, where products with many tokens may round these to bfloat16 too.
enum Layout : int32_t { STORED_ROWS = 0, STRIPS = 1, BF16_ROWS = 2 };

// A weight (num_rows, columns). Filled by Python (native.py, which checks everything below); layouts must match.
//   data: STORED_ROWS, BF16_ROWS: row n of the model starts at data + (row_map ? row_map[n] : n) * row_bytes; any
//   alignment.
//     STRIPS: rows 16 s .. 16 s + 15 of the model start at data + s * strip_bytes; 64-byte aligned.
//   columns: a multiple of the storage's block (32 or 256), of group_size for AFFINE_*, anything for floats.
//   group_size: a multiple of 32 for AFFINE_*, else unused.
//   row_map: (num_rows,) or null. row_bytes: of STORED_ROWS and BF16_ROWS.
//   keeps_words: of STRIPS: activations of many tokens are never rounded to bytes.
struct Matrix {
    const uint8_t* data;
    const int64_t* row_map;
    int64_t num_rows;
    int64_t columns;
    int64_t row_bytes;
    int64_t group_size;
    int32_t storage;
    int32_t layout;
    int32_t keeps_words;
};

// Layouts of activations; `pack` of multiply.h makes them.
//   PACKED_FLOATS: for STORED_ROWS and BF16_ROWS, exact. Groups of 8 tokens, the last one of 1, 2, 4 or 8: vectors of
//   `lanes` columns,
//     the tokens of one vector beside each other, columns rounded up to 32 and filled with zeros.
//   PACKED_FIXED: for STRIPS and up to 8 tokens: 16-bit fixed point with one scale a token (fixed_point.h).
//   PACKED_TILES: for STRIPS and more. On AMX bfloat16 in tiles (amx_layout.h), for BF16_ROWS too; else words
//     (word_layout.h).
//   PACKED_BYTES: for STRIPS and as many, where the instruction set has that and the matrix lets it (byte_layout.h).
enum Packing : int32_t { PACKED_FLOATS = 0, PACKED_FIXED = 1, PACKED_TILES = 2, PACKED_BYTES = 3 };

// packed: 64-byte aligned.
struct Activations {
    const void* packed;
    int64_t tokens;
    int64_t columns;
    int32_t packing;
};

// One group of PACKED_FLOATS: packed[(k / lanes * tokens + m) * lanes + k % lanes]; 1, 2, 4 or 8 tokens.
struct FloatGroup {
    const float* packed;
    int64_t tokens;
};

// Rows as they are stored, in float32. All operations of these tables are safe to call from several threads on
// disjoint rows.
//   matmul: out[m * out_stride + n] = sum over k of x[m, k] * weight[n, k] in float32, for m < stored_tokens.
//   decode: writes the values of rows first..last to out (last - first, columns), contiguous float32.
struct StoredRowKernels {
    int64_t lanes;
    void (*matmul)(const Matrix&, const FloatGroup&, float* out, int64_t out_stride, int64_t stored_tokens,
                   int64_t first, int64_t last);
    void (*decode)(const Matrix&, float* out, int64_t first, int64_t last);
};

// Strips. first: a multiple of 16.
//   pack: tokens first..last of x, rows x_stride floats apart, to one of the others than PACKED_FLOATS; order as in
//   multiply.h. multiply: by what `pack` made; out as in StoredRowKernels, all tokens. packed_bytes: of so many
//   activations. takes_rows: BF16_ROWS are multiplied too. multiply_gated: columns first..last of `packed`, activations
//   for these same kernels, become silu(gate) * up, where gate are the products with the first half of the rows, and up
//   those with the other half. A half is a multiple of 64 rows. Null where there is none.
struct StripKernels {
    void (*pack)(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, const int64_t* order, void* packed,
                 int64_t first, int64_t last);
    void (*multiply)(const Matrix&, const Activations&, float* out, int64_t out_stride, int64_t first, int64_t last);
    int64_t (*packed_bytes)(int64_t tokens, int64_t columns);
    bool takes_rows;
    void (*multiply_gated)(const Matrix&, const Activations&, void* packed, int64_t first, int64_t last);
};

// Everything of one instruction set. strips: by PACKED_FIXED. tiles: by PACKED_TILES. bytes: by PACKED_BYTES, or null.
struct Kernels {
    const StoredRowKernels* stored_rows;
    const StripKernels* strips;
    const StripKernels* tiles;
    const StripKernels* bytes;
};

extern const StoredRowKernels avx2_stored_rows;
extern const StoredRowKernels avx512_stored_rows;
extern const StripKernels avx2_strips;
extern const StripKernels avx512_strips;
extern const StripKernels avx512_vnni_strips;
extern const StripKernels avx2_words;
extern const StripKernels avx512_words;
extern const StripKernels avx512_vnni_words;
extern const StripKernels avx512_vnni_bytes;
extern const StripKernels amx_tiles;

} // namespace qlocal
