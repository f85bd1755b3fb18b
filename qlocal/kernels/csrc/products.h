// Products of several weights as one parallel loop: q, k and v, or gate and up of all the experts a token was given.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "matrix.h"
#include "scratch.h"

namespace qlocal {

// A weight and how its input is prepared. Filled by Python (native_step.py).
//   column_order: (columns,) by which activations are gathered first, or null. bias: (num_rows,) or null.
struct Part {
    Matrix matrix;
    const int64_t* column_order;
    const float* bias;
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
        int64_t out_stride, piece_rows, first_piece;
    };

    // Gathered and packed as the kernels read it.
    Activations pack(const Part& part, const float* x, int64_t tokens);
    bool can_share(const Part& part, const Part& before, int64_t tokens) const;
    void work(int64_t piece) const;

    const Kernels& kernels_;
    std::vector<Item> items_;
    std::vector<AlignedMemory> packed_; // kept, so that later steps find the memory
    std::size_t num_packed_ = 0;
};

} // namespace qlocal
