#include "products.h"

#include <algorithm>
#include <cstring>

#include "thread_pool.h"

namespace {

// A row range handed to a thread is worth the hand-over, and there are about eight a thread, so that one that is
// interrupted does not hold up the others. A multiple of the rows that take turns in a kernel.
int64_t rows_a_piece(const qlocal::Matrix& weight, int64_t pieces) {
    constexpr int64_t turn = 8, worthwhile_bytes = 32 << 10;
    const int64_t least = worthwhile_bytes / std::max<int64_t>(weight.row_bytes, 1);
    return (std::max({weight.num_rows / pieces, least, int64_t(1)}) + turn - 1) / turn * turn;
}

int64_t padded_tokens(int64_t tokens) {
    int64_t padded = 1;
    while (padded < tokens)
        padded *= 2;
    return padded;
}

float rounded_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

} // namespace

qlocal::Activations qlocal::Products::pack(const Part& part, const float* x, int64_t tokens) {
    if (num_packed_ == packed_.size())
        packed_.emplace_back();
    std::vector<float>& packed = packed_[num_packed_++];
    const int64_t columns = part.matrix.columns, width = padded_tokens(tokens), lanes = kernels_.lanes;
    packed.assign(size_t((columns + 31) / 32 * 32 * width), 0.0f);
    for (int64_t m = 0; m < tokens; ++m, x += columns)
        for (int64_t k = 0; k < columns; ++k) {
            const float value = x[part.column_order ? part.column_order[k] : k];
            float& to = packed[size_t((k / lanes * width + m) * lanes + k % lanes)];
            to = part.rounds_to_bf16 ? rounded_to_bf16(value) : value;
        }
    return {packed.data(), width};
}

void qlocal::Products::add(const Linear& linear, const float* x, int64_t tokens, float* out) {
    int64_t stride = 0;
    for (int64_t i = 0; i < linear.num_parts; ++i)
        stride += linear.parts[i].matrix.num_rows;
    for (int64_t i = 0; i < linear.num_parts; ++i) {
        const Part& part = linear.parts[i];
        const bool same = i > 0 && part.column_order == linear.parts[i - 1].column_order;
        items_.push_back({&part, same ? items_.back().x : pack(part, x, tokens), out, stride, tokens, 0, 0});
        out += part.matrix.num_rows;
    }
}

void qlocal::Products::run() {
    const int64_t pieces = int64_t(get_threads()) * 8;
    int64_t num_pieces = 0;
    for (Item& item : items_) {
        item.piece_rows = rows_a_piece(item.part->matrix, pieces);
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
    kernels_.matmul(item.part->matrix, item.x, item.out, item.out_stride, item.tokens, first, last);
    if (item.part->bias)
        for (int64_t m = 0; m < item.tokens; ++m)
            for (int64_t row = first; row < last; ++row)
                item.out[m * item.out_stride + row] += item.part->bias[row];
}
