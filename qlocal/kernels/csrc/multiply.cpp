#include "multiply.h"

#include <algorithm>

#include "cpu.h"
#include "fixed_point.h"
#include "strip_layout.h"

namespace {

using qlocal::Kernels;

constexpr Kernels kAvx2{&qlocal::avx2_stored_rows, &qlocal::avx2_strips, &qlocal::avx2_words, nullptr};
constexpr Kernels kAvx512{&qlocal::avx512_stored_rows, &qlocal::avx512_strips, &qlocal::avx512_words, nullptr};
constexpr Kernels kAvx512Vnni{&qlocal::avx512_stored_rows, &qlocal::avx512_vnni_strips, &qlocal::avx512_vnni_words,
                              &qlocal::avx512_vnni_bytes};
constexpr Kernels kAmx{&qlocal::avx512_stored_rows, &qlocal::avx512_vnni_strips, &qlocal::amx_tiles, nullptr};

// Tokens from which turning weights into tiles pays.
constexpr int64_t kManyTokens = 9;

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// By which activations of strips, packed so, are multiplied.
const qlocal::StripKernels& strip_kernels(const Kernels& kernels, int32_t packing) {
    return packing == qlocal::PACKED_FIXED   ? *kernels.strips
           : packing == qlocal::PACKED_TILES ? *kernels.tiles
                                             : *kernels.bytes;
}

// --- PACKED_FLOATS: groups of eight tokens.

int64_t rounded_columns(int64_t columns) { return rounded_up(columns, 32); }

void pack_floats(int64_t lanes, const float* x, int64_t x_stride, int64_t tokens, int64_t columns, const int64_t* order,
                 float* packed, int64_t first, int64_t last) {
    const int64_t rounded = rounded_columns(columns);
    const int64_t end = last < tokens ? last : (tokens - 1) / kGroupTokens * kGroupTokens + kGroupTokens;
    for (int64_t token = first; token < end; ++token) {
        const int64_t group = token / kGroupTokens, m = token % kGroupTokens;
        const int64_t width = padded_tokens(std::min(tokens - group * kGroupTokens, kGroupTokens));
        if (m >= width)
            return;
        float* to = packed + group * kGroupTokens * rounded;
        for (int64_t k = 0; k < rounded; ++k) {
            const bool is_there = token < tokens && k < columns;
            to[(k / lanes * width + m) * lanes + k % lanes] =
                is_there ? x[token * x_stride + (order ? order[k] : k)] : 0;
        }
    }
}

void multiply_floats(const qlocal::StoredRowKernels& kernels, const qlocal::Matrix& weight,
                     const qlocal::Activations& x, float* out, int64_t out_stride, int64_t first, int64_t last) {
    const auto* packed = static_cast<const float*>(x.packed);
    for (int64_t token = 0; token < x.tokens; token += kGroupTokens) {
        const int64_t count = std::min(x.tokens - token, kGroupTokens);
        const qlocal::FloatGroup group{packed + token * rounded_columns(x.columns), padded_tokens(count)};
        kernels.matmul(weight, group, out + token * out_stride, out_stride, count, first, last);
    }
}

} // namespace

const Kernels& qlocal::kernels_of(int32_t isa) {
    switch (isa) {
    case ISA_AMX:
        return kAmx;
    case ISA_AVX512_VNNI:
        return kAvx512Vnni;
    case ISA_AVX512:
        return kAvx512;
    default:
        return kAvx2;
    }
}

int32_t qlocal::packing_of(const Kernels& kernels, const Matrix& weight, int64_t tokens) {
    const bool takes_rows = weight.layout == BF16_ROWS && kernels.tiles->takes_rows;
    if (tokens >= kManyTokens && (weight.layout == STRIPS || takes_rows))
        return kernels.bytes && !weight.keeps_words ? PACKED_BYTES : PACKED_TILES;
    return weight.layout == STRIPS ? PACKED_FIXED : PACKED_FLOATS;
}

int64_t qlocal::packed_bytes(const Kernels& kernels, int32_t packing, int64_t tokens, int64_t columns) {
    if (packing != PACKED_FLOATS)
        return strip_kernels(kernels, packing).packed_bytes(tokens, columns);
    const int64_t last = (tokens - 1) / kGroupTokens * kGroupTokens;
    return (last + padded_tokens(tokens - last)) * rounded_columns(columns) * int64_t(sizeof(float));
}

void qlocal::pack(const Kernels& kernels, int32_t packing, const float* x, int64_t x_stride, int64_t tokens,
                  int64_t columns, const int64_t* order, void* packed, int64_t first, int64_t last) {
    if (packing != PACKED_FLOATS)
        return strip_kernels(kernels, packing).pack(x, x_stride, tokens, columns, order, packed, first, last);
    pack_floats(kernels.stored_rows->lanes, x, x_stride, tokens, columns, order, static_cast<float*>(packed), first,
                last);
}

void qlocal::multiply(const Kernels& kernels, const Matrix& weight, const Activations& x, float* out,
                      int64_t out_stride, int64_t first, int64_t last) {
    if (x.packing != PACKED_FLOATS)
        return strip_kernels(kernels, x.packing).multiply(weight, x, out, out_stride, first, last);
    multiply_floats(*kernels.stored_rows, weight, x, out, out_stride, first, last);
}

int64_t qlocal::row_step(const Matrix& weight) { return weight.layout == STRIPS ? kStripRows : 8; }

int64_t qlocal::rows_a_piece(const Matrix& weight, int64_t rows, int64_t tokens, int64_t threads) {
    constexpr int64_t worthwhile_bytes = 64 << 10; // of weights, for one token
    constexpr int64_t most_rows_of_many = 512;     // that tiles of many tokens are multiplied with at once
    if (weight.layout != STRIPS && (weight.layout == STORED_ROWS || tokens < kManyTokens)) {
        const int64_t least = worthwhile_bytes / std::max<int64_t>(weight.row_bytes * tokens, 1);
        return rounded_up(std::max({rows / (threads * 8), least, int64_t(1)}), row_step(weight));
    }
    constexpr int64_t step = 2 * kStripRows; // as wide as a panel of tiles
    if (tokens >= kManyTokens) {
        const int64_t turns = (rows + threads * most_rows_of_many - 1) / (threads * most_rows_of_many);
        return rounded_up((rows + threads * turns - 1) / (threads * turns), step);
    }
    constexpr int64_t pieces_a_thread = 32; // of which a thread takes several at once while there are many
    const int64_t least = worthwhile_bytes * kStripRows / strip_bytes(weight) / tokens;
    return rounded_up(std::max({rows / (threads * pieces_a_thread), least, int64_t(1)}), step);
}
