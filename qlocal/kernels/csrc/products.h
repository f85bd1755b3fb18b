// Products of several weights as one parallel loop: q, k and v, or gate and up of all the experts that tokens go to.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "matrix.h"
#include "scratch.h"

namespace qlocal {

// A weight of a linear. Filled by Python (native_step.py).
//   column_order: (columns,) by which activations are gathered, or null. bias: (num_rows,) or null.
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

    // Note out = x W^T + b for all parts. x: (tokens, columns), contiguous. out: (tokens, sum of rows), contiguous.
    void add(const Linear& linear, const float* x, int64_t tokens, float* out);

    // Whether the activations between two linears, silu(gate) * up, can go from one to the other as they are packed.
    bool can_gate(const Linear& gate_up, const Linear& down, int64_t tokens) const;

    // Note packed = silu(gate) * up, for linears of which can_gate holds.
    void add_gated(const Linear& gate_up, const float* x, int64_t tokens, AlignedMemory& packed);

    // Note out = inner W^T + b, for what add_gated made.
    void add_packed(const Linear& down, AlignedMemory& packed, int64_t tokens, float* out);

    // Compute what was noted, on all threads.
    void run();

  private:
    // Activations that wait to be packed, or are already where x is null; parts that want the same share them.
    struct Input {
        const float* x;
        const int64_t* order;
        int64_t tokens, columns, first_piece;
        int32_t packing;
        void* packed;
    };
    // rows: of the output, which is `packed` instead of `out` where halves of the matrix are a gate and what passes it.
    struct Item {
        const Part* part;
        size_t input;
        float* out;
        int64_t out_stride, rows;
        void* packed = nullptr;
        int64_t piece_rows = 0, first_piece = 0;
    };

    size_t input_of(const Part& part, const float* x, int64_t tokens);
    void pack_all();
    void pack(int64_t piece);
    void multiply(int64_t piece);

    const Kernels& kernels_;
    std::vector<Input> inputs_;
    std::vector<Item> items_;
    std::vector<AlignedMemory> memory_; // of the inputs; kept from one run to the next
};

} // namespace qlocal
