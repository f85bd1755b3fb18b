// Products of several weights as one parallel loop: q, k and v, or gate and up of all the experts a token was given.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "matrix.h"

namespace qlocal {

// A weight and how its input is prepared. Filled by Python (native_step.py).
//   column_order: (columns,) by which activations are gathered first, or null. bias: (num_rows,) or null.
//   rounds_to_bf16: whether activations are rounded to bfloat16 first.
struct Part {
    Matrix matrix;
    const int64_t* column_order;
    const float* bias;
    int32_t rounds_to_bf16;
};

// Parts with one input; their outputs stand one after another.
struct Linear {
    const Part* parts;
    int64_t num_parts;
};

class Products {
  public:
    explicit Products(const Kernels& kernels) : kernels_(kernels) {}

    // Note out = x W^T + b for all parts. x: (tokens, columns), contiguous; it is read at once. out: (tokens, sum of
    // rows), contiguous; written by `run`.
    void add(const Linear& linear, const float* x, int64_t tokens, float* out);

    // Compute what was noted, on all threads.
    void run();

  private:
    struct Item {
        const Part* part;
        Activations x;
        float* out;
        int64_t out_stride, tokens, piece_rows, first_piece;
    };

    // Rounded, gathered, and packed as the kernels read it.
    Activations pack(const Part& part, const float* x, int64_t tokens);
    void work(int64_t piece) const;

    const Kernels& kernels_;
    std::vector<Item> items_;
    std::vector<std::vector<float>> packed_; // kept, so that later steps find the memory
    std::size_t num_packed_ = 0;
};

} // namespace qlocal
