// Products for every layout of weights and any number of tokens: what native.cpp and the layer step call. Nothing here
// starts threads; pieces of rows, and of tokens while packing, may be done by several at once.

#pragma once

#include "matrix.h"

namespace qlocal {

// isa: one of cpu.h that this CPU has.
const Kernels& kernels_of(int32_t isa);

// How a weight wants its activations. Weights with the same packing, columns and column order can share them.
int32_t packing_of(const Kernels& kernels, const Matrix& weight, int64_t tokens);

// Bytes of activations packed so.
int64_t packed_bytes(const Kernels& kernels, int32_t packing, int64_t tokens, int64_t columns);

// Pack tokens first..last of x into `packed` (64-byte aligned), which is laid out for `tokens`. Calls on disjoint
// ranges fill it together; the one with the last token also fills what pads it.
//   x: float32, rows x_stride floats apart, x being token 0. order: (columns,) or null; packed column k is x's
//   order[k].
void pack(const Kernels& kernels, int32_t packing, const float* x, int64_t x_stride, int64_t tokens, int64_t columns,
          const int64_t* order, void* packed, int64_t first, int64_t last);

// out[m * out_stride + n] = sum over k of x[m, k] * weight[n, k], for all tokens and rows first..last; first is a
// multiple of row_step, and last too or the number of rows.
void multiply(const Kernels& kernels, const Matrix& weight, const Activations& x, float* out, int64_t out_stride,
              int64_t first, int64_t last);

int64_t row_step(const Matrix& weight);

// Rows of a piece of work, of `rows`: a multiple of row_step, enough work to be worth the hand-over, and few enough
// that a thread that is interrupted in its last piece does not hold up the others for long.
int64_t rows_a_piece(const Matrix& weight, int64_t rows, int64_t tokens, int64_t threads);

} // namespace qlocal
