// Products of strips and many tokens in bytes (byte_layout.h), for any vector type V: four products and their sum an
// instruction and lane, where words (strip_words.h) have two. Codes stay what they are; a sum of 32 products meets its
// scales as a float. So weights are exact, and activations have 8 bits and a scale for every 32 columns: enough for
// most linears of a model, not for all (layers/linear.py says which keep words).
//
// V is that of strip_types.h and has further: dot_bytes (int32 += four products of an unsigned and a signed byte) and
// byte_strips (a panel: so many times 16 rows have their sums in registers at once).

#pragma once

#include "byte_layout.h"
#include "fixed_pack.h"
#include "many_tokens.h"

namespace {

// --- Activations

// One unit of one token of a group. x: what is left of the token, `left` values.
inline void pack_byte_unit(const float* x, int64_t left, int64_t m, ByteUnit& unit) {
    const int64_t count = left < 0 ? 0 : least(left, kUnitColumns);
    const Fixed fixed(x, count, kLargestByte);
    int32_t codes[kUnitColumns];
    fixed.round(x, count, codes);
    unit.scales[m] = fixed.scale;
    int32_t minus_sums[2] = {0, 0};
    for (int half = 0; half < 2; ++half)
        for (int k = 16 * half; k < 16 * half + 16; ++k)
            minus_sums[half] -= codes[k];
    for (int k = 0; k < kUnitColumns; ++k)
        unit.codes[m][k] = int8_t(codes[k]);
    unit.minus_sums[0][m] = minus_sums[0];
    unit.minus_sums[1][m] = minus_sums[1];
    unit.minus_sums[2][m] = minus_sums[0] + minus_sums[1];
}

inline void pack_token_bytes(const float* x, int64_t columns, const ByteLayout& layout, int64_t token,
                             ByteUnit* packed) {
    ByteUnit* units = packed + layout.at(token / kByteTokens, 0);
    for (int64_t unit = 0; unit < layout.units; ++unit)
        pack_byte_unit(x + unit * kUnitColumns, columns - unit * kUnitColumns, token % kByteTokens, units[unit]);
}

// StripKernels::pack.
inline void pack_bytes(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, const int64_t* order,
                       void* packed, int64_t first, int64_t last) {
    const ByteLayout layout(tokens, columns);
    auto* units = static_cast<ByteUnit*>(packed);
    for (int64_t token = first; token < last; ++token)
        pack_token_bytes(in_order(x + token * x_stride, columns, order), columns, layout, token, units);
    if (last == tokens)
        for (int64_t token = tokens; token < layout.groups * kByteTokens; ++token)
            pack_token_bytes(x, 0, layout, token, units);
}

inline int64_t byte_tile_bytes(int64_t tokens, int64_t columns) { return ByteLayout(tokens, columns).bytes(); }

// --- Weights

// 16 rows of a unit in a panel: the lines of their codes; what a half of the unit, or all of it, is multiplied with,
// and what stands beside the sum of its activations, sign turned as theirs is.
struct StripUnit {
    uint8_t lines[8][kLineBytes];
    float scales[2][kStripRows];
    float minus_shifts[2][kStripRows];
};

// --- Products

template <class V> class ByteTiles {
    static_assert(V::rows == kStripRows);

  public:
    static constexpr int64_t chunk_units = 8;
    static constexpr int64_t panel_rows = V::byte_strips * kStripRows;
    static constexpr int panel_buffers = 1;

    explicit ByteTiles(const Activations& x)
        : layout_(x.tokens, x.columns), packed_(static_cast<const ByteUnit*>(x.packed)) {}

    static constexpr int64_t strip_bytes(int64_t units) { return units * int64_t(sizeof(StripUnit)); }

    int64_t units() const { return layout_.units; }

    template <class T> void decode(const StripWeight<T>& weight, const Panel& panel) const {
        for (int64_t n = 0; n < panel.num_strips(); ++n) {
            StripUnit* to = strip(panel, n);
            weight.template for_units<V>(
                panel.row + n * kStripRows, 0, panel.first_unit, panel.first_unit + panel.units,
                [&](const auto& scales, int64_t unit, const uint8_t* codes) {
                    typename V::B w[8];
                    T::Codes::template unpack<V>(codes, w);
                    repeat<8>([&](auto j) QLOCAL_INLINE_LAMBDA { V::store(to->lines[j.value], w[j.value]); });
                    for (int part = 0; part <= int(T::by_half); ++part) {
                        V::store_float(to->scales[part], scales.scale(unit, part));
                        if constexpr (T::has_shift)
                            V::store_float(to->minus_shifts[part], V::sub(V::zero(), scales.shift(unit, part)));
                    }
                    ++to;
                });
        }
    }

    template <class T>
    void multiply(const StripWeight<T>& weight, const Panel& panel, const Panel& next, int64_t first_token,
                  int64_t tokens, uint8_t* sums, const FloatOutput& output) const {
        auto* group_sums = reinterpret_cast<float*>(sums);
        for (int64_t m = 0; m < tokens; m += kByteTokens, group_sums += kByteTokens * panel_rows) {
            const Group group{(first_token + m) / kByteTokens, least(tokens - m, kByteTokens), group_sums,
                              output.at(first_token + m, panel.row), output.stride};
            int64_t n = 0;
            for (; panel.rows - n > (V::byte_strips - 1) * kStripRows; n += panel_rows)
                multiply_group<T, V::byte_strips>(panel, group, n);
            for (; n < panel.rows; n += kStripRows)
                multiply_group<T, 1>(panel, group, n);
        }
        decode(weight, next);
    }

  private:
    struct Group {
        int64_t index, count;
        float* sums;
        float* out;
        int64_t out_stride;
    };

    static QLOCAL_INLINE StripUnit* strip(const Panel& panel, int64_t n) {
        return reinterpret_cast<StripUnit*>(panel.strips + n * panel.strip_bytes);
    }

    // Rows n .. n + 16 N of the panel with 4 tokens.
    template <class T, int N>
    QLOCAL_INLINE void multiply_group(const Panel& panel, const Group& group, int64_t n) const {
        const ByteUnit* x = packed_ + layout_.at(group.index, panel.first_unit);
        const StripUnit* w[N];
        typename V::F totals[N][kByteTokens];
        repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
            w[i.value] = strip(panel, n / kStripRows + i.value);
            repeat<kByteTokens>([&](auto m) QLOCAL_INLINE_LAMBDA { totals[i.value][m.value] = V::zero(); });
        });
        for (int64_t unit = 0; unit < panel.units; ++unit, ++x) {
            if constexpr (T::by_half) {
                add_part<T, N, 0, 4, 0, false>(w, unit, *x, totals);
                add_part<T, N, 4, 4, 1, false>(w, unit, *x, totals);
            } else {
                add_part<T, N, 0, 8, 0, true>(w, unit, *x, totals);
            }
        }
        repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
            const int64_t at = n + i.value * kStripRows;
            repeat<kByteTokens>([&](auto m) QLOCAL_INLINE_LAMBDA {
                float* sum = group.sums + m.value * panel_rows + at;
                auto total = totals[i.value][m.value];
                if (!panel.is_first)
                    total = V::add(total, V::load_float(sum));
                if (!panel.is_last)
                    V::store_float(sum, total);
                else if (m.value < group.count)
                    V::store_some(group.out + m.value * group.out_stride + at, total,
                                  least(panel.rows - at, kStripRows));
            });
        });
    }

    // totals += the products of `Lines` lines of a unit, which is its half `Part` or all of it.
    template <class T, int N, int First, int Lines, int Part, bool IsWhole>
    static QLOCAL_INLINE void add_part(const StripUnit* const (&w)[N], int64_t unit, const ByteUnit& x,
                                       typename V::F (&totals)[N][kByteTokens]) {
        const int32_t* minus_sums = x.minus_sums[IsWhole ? 2 : Part];
        typename V::I products[N][kByteTokens];
        repeat<kByteTokens>([&](auto m) QLOCAL_INLINE_LAMBDA {
            auto start = V::set1_int(0);
            if constexpr (T::offset_bits >= 0)
                start = V::template shift_int<T::offset_bits>(V::set1_int(minus_sums[m.value]));
            repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA { products[i.value][m.value] = start; });
        });
        repeat<Lines>([&](auto j) QLOCAL_INLINE_LAMBDA {
            constexpr int line = First + decltype(j)::value;
            typename V::B lines[N];
            repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA { lines[i.value] = V::load(w[i.value][unit].lines[line]); });
            repeat<kByteTokens>([&](auto m) QLOCAL_INLINE_LAMBDA {
                const auto codes = V::set1_four(reinterpret_cast<const uint8_t*>(x.codes[m.value] + 4 * line));
                repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
                    products[i.value][m.value] = V::dot_bytes(products[i.value][m.value], lines[i.value], codes);
                });
            });
        });
        repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
            const StripUnit& of = w[i.value][unit];
            const auto scales = V::load_float(of.scales[Part]);
            repeat<kByteTokens>([&](auto m) QLOCAL_INLINE_LAMBDA {
                auto product = V::mul(V::to_float(products[i.value][m.value]), scales);
                if constexpr (T::has_shift)
                    product =
                        V::fma(V::load_float(of.minus_shifts[Part]), V::set1(float(minus_sums[m.value])), product);
                auto& total = totals[i.value][m.value];
                total = V::fma(product, V::set1(x.scales[m.value]), total);
            });
        });
    }

    ByteLayout layout_;
    const ByteUnit* packed_;
};

// StripKernels::multiply.
template <class V>
void multiply_bytes(const Matrix& weight, const Activations& x, float* out, int64_t out_stride, int64_t first,
                    int64_t last) {
    const ByteTiles<V> tiles(x);
    with_strip_type(weight.storage, [&](auto type) {
        multiply_many(tiles, StripWeight<decltype(type)>{weight}, x.tokens, FloatOutput{out, out_stride}, first, last);
    });
}

} // namespace
