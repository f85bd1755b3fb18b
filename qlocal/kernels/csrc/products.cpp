#include "products.h"

#include <algorithm>

#include "multiply.h"
#include "thread_pool.h"

namespace {

constexpr int64_t kPackedTogether = 16; // tokens that a thread packs at once

// The last of `things` that begins at `piece` or before.
template <class Thing> const Thing& holder_of(const std::vector<Thing>& things, int64_t piece) {
    const auto after = std::upper_bound(things.begin(), things.end(), piece,
                                        [](int64_t p, const Thing& thing) { return p < thing.first_piece; });
    return *(after - 1);
}

int64_t num_rows(const qlocal::Linear& linear) {
    int64_t rows = 0;
    for (int64_t i = 0; i < linear.num_parts; ++i)
        rows += linear.parts[i].matrix.num_rows;
    return rows;
}

} // namespace

void qlocal::Products::add(const Linear& linear, const float* x, int64_t tokens, float* out) {
    const int64_t stride = num_rows(linear);
    for (const Part* part = linear.parts; part < linear.parts + linear.num_parts; ++part) {
        items_.push_back({part, input_of(*part, x, tokens), out, stride, part->matrix.num_rows});
        out += part->matrix.num_rows;
    }
}

bool qlocal::Products::can_gate(const Linear& gate_up, const Linear& down, int64_t tokens) const {
    const Part &wide = gate_up.parts[0], &narrow = down.parts[0];
    const auto is_tiled = [&](const Part& part) { return packing_of(kernels_, part.matrix, tokens) == PACKED_TILES; };
    const bool is_plain = gate_up.num_parts == 1 && down.num_parts == 1 && !wide.bias && !narrow.column_order;
    return kernels_.tiles->multiply_gated && is_plain && is_tiled(wide) && is_tiled(narrow) &&
           wide.matrix.num_rows % 128 == 0;
}

void qlocal::Products::add_gated(const Linear& gate_up, const float* x, int64_t tokens, AlignedMemory& packed) {
    const Part& part = gate_up.parts[0];
    const int64_t rows = part.matrix.num_rows / 2;
    void* out = packed.at_least(packed_bytes(kernels_, PACKED_TILES, tokens, rows));
    items_.push_back({&part, input_of(part, x, tokens), nullptr, 0, rows, out});
}

void qlocal::Products::add_packed(const Linear& down, AlignedMemory& packed, int64_t tokens, float* out) {
    const Part& part = down.parts[0];
    inputs_.push_back({nullptr, nullptr, tokens, part.matrix.columns, 0, PACKED_TILES, packed.at_least(0)});
    items_.push_back({&part, inputs_.size() - 1, out, part.matrix.num_rows, part.matrix.num_rows});
}

size_t qlocal::Products::input_of(const Part& part, const float* x, int64_t tokens) {
    const int32_t packing = packing_of(kernels_, part.matrix, tokens);
    const auto same = std::find_if(inputs_.begin(), inputs_.end(), [&](const Input& input) {
        return input.x == x && input.packing == packing && input.order == part.column_order;
    });
    if (same != inputs_.end())
        return size_t(same - inputs_.begin());
    const size_t index = inputs_.size();
    if (index == memory_.size())
        memory_.emplace_back();
    void* packed = memory_[index].at_least(packed_bytes(kernels_, packing, tokens, part.matrix.columns));
    inputs_.push_back({x, part.column_order, tokens, part.matrix.columns, 0, packing, packed});
    return index;
}

void qlocal::Products::run() {
    pack_all();
    int64_t pieces = 0;
    for (Item& item : items_) {
        const Matrix& matrix = item.part->matrix;
        const int64_t halves = item.packed ? 2 : 1; // rows of the matrix for one of the output
        item.piece_rows = rows_a_piece(matrix, matrix.num_rows, inputs_[item.input].tokens, get_threads()) / halves;
        item.first_piece = pieces;
        pieces += (item.rows + item.piece_rows - 1) / item.piece_rows;
    }
    parallel(pieces, 1, [this](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece)
            multiply(piece);
    });
    items_.clear();
    inputs_.clear();
}

void qlocal::Products::pack_all() {
    int64_t pieces = 0;
    for (Input& input : inputs_) {
        input.first_piece = pieces;
        if (input.x)
            pieces += (input.tokens + kPackedTogether - 1) / kPackedTogether;
    }
    parallel(pieces, 1, [this](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece)
            pack(piece);
    });
}

void qlocal::Products::pack(int64_t piece) {
    const Input& input = holder_of(inputs_, piece);
    const int64_t first = (piece - input.first_piece) * kPackedTogether;
    qlocal::pack(kernels_, input.packing, input.x, input.columns, input.tokens, input.columns, input.order,
                 input.packed, first, std::min(first + kPackedTogether, input.tokens));
}

void qlocal::Products::multiply(int64_t piece) {
    const Item& item = holder_of(items_, piece);
    const Input& input = inputs_[item.input];
    const int64_t first = (piece - item.first_piece) * item.piece_rows;
    const int64_t last = std::min(first + item.piece_rows, item.rows);
    const Activations x{input.packed, input.tokens, input.columns, input.packing};
    if (item.packed)
        return kernels_.tiles->multiply_gated(item.part->matrix, x, item.packed, first, last);
    qlocal::multiply(kernels_, item.part->matrix, x, item.out, item.out_stride, first, last);
    if (const float* bias = item.part->bias)
        for (int64_t m = 0; m < input.tokens; ++m)
            for (int64_t row = first; row < last; ++row)
                item.out[m * item.out_stride + row] += bias[row];
}
