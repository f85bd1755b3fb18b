#include "products.h"

#include <algorithm>

#include "multiply.h"
#include "thread_pool.h"

qlocal::Activations qlocal::Products::pack(const Part& part, const float* x, int64_t tokens) {
    if (num_packed_ == packed_.size())
        packed_.emplace_back();
    const int64_t columns = part.matrix.columns;
    const int32_t packing = packing_of(kernels_, part.matrix, tokens);
    void* packed = packed_[num_packed_++].at_least(packed_bytes(packing, tokens, columns));
    qlocal::pack(kernels_, packing, x, columns, tokens, columns, part.column_order, packed, 0, tokens);
    return {packed, tokens, columns, packing};
}

bool qlocal::Products::can_share(const Part& part, const Part& before, int64_t tokens) const {
    return part.column_order == before.column_order &&
           packing_of(kernels_, part.matrix, tokens) == packing_of(kernels_, before.matrix, tokens);
}

void qlocal::Products::add(const Linear& linear, const float* x, int64_t tokens, float* out) {
    int64_t stride = 0;
    for (int64_t i = 0; i < linear.num_parts; ++i)
        stride += linear.parts[i].matrix.num_rows;
    for (int64_t i = 0; i < linear.num_parts; ++i) {
        const Part& part = linear.parts[i];
        const bool same = i > 0 && can_share(part, linear.parts[i - 1], tokens);
        items_.push_back({&part, same ? items_.back().x : pack(part, x, tokens), out, stride, 0, 0});
        out += part.matrix.num_rows;
    }
}

void qlocal::Products::run() {
    int64_t num_pieces = 0;
    for (Item& item : items_) {
        item.piece_rows = rows_a_piece(item.part->matrix, item.part->matrix.num_rows, item.x.tokens, get_threads());
        item.first_piece = num_pieces;
        num_pieces += (item.part->matrix.num_rows + item.piece_rows - 1) / item.piece_rows;
    }
    const auto body = [](void* context, int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece)
            static_cast<const Products*>(context)->work(piece);
    };
    parallel_rows(num_pieces, 1, body, this);
    items_.clear();
    num_packed_ = 0;
}

void qlocal::Products::work(int64_t piece) const {
    const auto after = std::upper_bound(items_.begin(), items_.end(), piece,
                                        [](int64_t p, const Item& item) { return p < item.first_piece; });
    const Item& item = *(after - 1);
    const int64_t first = (piece - item.first_piece) * item.piece_rows;
    const int64_t last = std::min(first + item.piece_rows, item.part->matrix.num_rows);
    multiply(kernels_, item.part->matrix, item.x, item.out, item.out_stride, first, last);
    if (item.part->bias)
        for (int64_t m = 0; m < item.x.tokens; ++m)
            for (int64_t row = first; row < last; ++row)
                item.out[m * item.out_stride + row] += item.part->bias[row];
}
