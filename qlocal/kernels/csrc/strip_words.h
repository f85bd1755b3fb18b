// Products of strips and many tokens in words (word_layout.h), for any vector type V: decoding a weight takes a few
// instructions a line, a product one or two for 32 columns and rows, and scales are met once in 256 columns.
//
// A weight becomes round(weight / s) with s for its row and chunk, chosen from the largest weight that the scales
// allow; so it is at most 1.2 units wrong of 1,900. Rounding both factors costs less than bfloat16 does.
//
// V is that of strip_types.h and has further: multiply_high (of words, rounded, what is above 15 bits), both_words (an
// int32 as both words of its lane), dot_words (int32 += two products of words), word_vectors (so many times V::rows
// rows have their sums in registers at once: loading tokens costs least where there are many), word_strips (a panel).

#pragma once

#include "fixed_pack.h"
#include "many_tokens.h"
#include "word_layout.h"

namespace {

// --- Activations

// One token of a group. x: (columns,) in the order of the weight.
inline void pack_token_words(const float* x, int64_t columns, const WordLayout& layout, int64_t token,
                             uint8_t* packed) {
    const int64_t group = token / kWordTokens, m = token % kWordTokens;
    auto* scales = reinterpret_cast<float*>(packed) + layout.scale(group, 0) + m;
    uint8_t* to = packed + layout.at(group, 0) + m * 4;
    for (int64_t first = 0; first < layout.units; first += kWordChunkUnits, scales += kWordTokens) {
        const int64_t units = least(kWordChunkUnits, layout.units - first), at = first * kUnitColumns;
        const int64_t count = least(units * kUnitColumns, columns > at ? columns - at : 0);
        const Fixed fixed(x + at, count, kLargestWord);
        *scales = fixed.scale;
        for (int64_t unit = 0; unit < units; ++unit, to += kWordUnitBytes) {
            int32_t codes[kUnitColumns];
            fixed.round(x + at + unit * kUnitColumns, count - unit * kUnitColumns, codes);
            for (int j = 0; j < 16; ++j) {
                const int32_t* low = codes + j / 2 * 4 + j % 2;
                const uint32_t pair = (uint32_t(low[0]) & 0xffff) | uint32_t(low[2]) << 16;
                std::memcpy(to + j * kWordTokens * 4, &pair, 4);
            }
        }
    }
}

// StripKernels::pack.
inline void pack_words(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, const int64_t* order,
                       void* packed, int64_t first, int64_t last) {
    const WordLayout layout(tokens, columns);
    auto* bytes = static_cast<uint8_t*>(packed);
    for (int64_t token = first; token < last; ++token)
        pack_token_words(in_order(x + token * x_stride, columns, order), columns, layout, token, bytes);
    if (last == tokens)
        for (int64_t token = tokens; token < layout.groups * kWordTokens; ++token)
            pack_token_words(x, 0, layout, token, bytes);
}

// --- Weights

// By how many bits codes are moved to the left, beyond the upper byte of a word, so that what they are multiplied with
// has as many bits as fit.
constexpr int word_shift(int largest) { return largest <= 3 ? 3 : largest <= 7 ? 1 : 0; }

// Codes of 8 bits are read as signed.
constexpr int code_offset(int largest) { return largest > 127 ? 128 : 0; }

template <class V, class T> struct WordScales {
    typename V::F scale[kWordChunkUnits][2], shift[kWordChunkUnits][2], largest = V::zero();
    typename V::F poison = V::zero(); // not a number where a scale is not finite

    // What a code, as it is read, is multiplied with, and what is added then.
    template <class Scales> QLOCAL_INLINE void add(const Scales& scales, int64_t from, int64_t to) {
        constexpr int top = T::Codes::largest;
        for (int part = 0; part <= int(T::by_half); ++part) {
            const auto s = scales.scale(from, part);
            const auto zero = [&] {
                if constexpr (T::has_shift)
                    return scales.shift(from, part);
                else
                    return V::mul(s, V::set1(-float(1 << T::offset_bits)));
            }();
            scale[to][part] = s;
            shift[to][part] = V::fma(s, V::set1(float(code_offset(top))), zero);
            largest = V::max(largest, V::max(V::abs(zero), V::abs(V::fma(s, V::set1(float(top)), zero))));
            poison = V::fma(s, V::zero(), V::fma(zero, V::zero(), poison));
        }
    }
};

// Rows of a strip, or of its half, as words. at: lines of 64 bytes, pairs as in word_layout.h; behind them 16 scales.
template <class V, class T>
void strip_to_words(const StripWeight<T>& weight, int64_t row, int half, int64_t first, int64_t last, uint8_t* words,
                    float* row_scales) {
    constexpr int top = T::Codes::largest, shift = word_shift(top);
    WordScales<V, T> scales;
    const uint8_t* codes[kWordChunkUnits];
    int64_t count = 0;
    weight.template for_units<V>(row, half, first, last, [&](const auto& of, int64_t unit, const uint8_t* at) {
        scales.add(of, unit, count);
        codes[count++] = at;
    });
    const auto limit = V::set1(float(kLargestWeightWord));
    const auto words_per_unit = V::zero_unless_above(V::div(limit, scales.largest), scales.largest, 1e-30f);
    V::store_float(row_scales + half * V::rows,
                   V::fma(scales.largest, V::set1(1.0f / float(kLargestWeightWord)), scales.poison));
    const auto factor = V::mul(words_per_unit, V::set1(float(1 << (7 - shift))));
    for (int64_t unit = 0; unit < count; ++unit) {
        typename V::B w[8], by[2], plus[2];
        T::Codes::template unpack<V>(codes[unit] + half * V::rows * 4, w);
        for (int part = 0; part <= int(T::by_half); ++part) {
            by[part] = V::both_words(V::to_int(V::mul(scales.scale[unit][part], factor)));
            plus[part] = V::both_words(V::to_int(V::mul(scales.shift[unit][part], words_per_unit)));
        }
        uint8_t* to = words + unit * kWordPairs * kLineBytes + half * V::rows * 4;
        repeat<8>([&](auto j) QLOCAL_INLINE_LAMBDA {
            constexpr int part = T::by_half && decltype(j)::value >= 4 ? 1 : 0;
            auto line = w[j.value];
            if constexpr (code_offset(top) != 0)
                line = V::xor_(line, V::set1_bytes(0x80));
            const auto even = V::template shift_left<8 + shift>(line);
            auto odd = V::and_(line, V::upper_bytes());
            if constexpr (shift != 0)
                odd = V::template shift_left<shift>(odd);
            V::store(to + 2 * j.value * kLineBytes, V::add_16(V::multiply_high(even, by[part]), plus[part]));
            V::store(to + (2 * j.value + 1) * kLineBytes, V::add_16(V::multiply_high(odd, by[part]), plus[part]));
        });
    }
}

// --- Products

template <class V> class WordTiles {
  public:
    static constexpr int64_t chunk_units = kWordChunkUnits;
    static constexpr int64_t panel_rows = V::word_strips * kStripRows;
    static constexpr int panel_buffers = 1;

    explicit WordTiles(const Activations& x)
        : layout_(x.tokens, x.columns), packed_(static_cast<const uint8_t*>(x.packed)) {}

    // The scales of 16 rows stand behind their words.
    static constexpr int64_t strip_bytes(int64_t units) { return (units * kWordPairs + 1) * kLineBytes; }

    int64_t units() const { return layout_.units; }

    template <class T> void decode(const StripWeight<T>& weight, const Panel& panel) const {
        for (int64_t n = 0; n < panel.num_strips(); ++n) {
            uint8_t* strip = panel.strips + n * panel.strip_bytes;
            auto* scales = reinterpret_cast<float*>(strip + panel.strip_bytes - kLineBytes);
            for (int half = 0; half * V::rows < kStripRows; ++half)
                strip_to_words<V, T>(weight, panel.row + n * kStripRows, half, panel.first_unit,
                                     panel.first_unit + panel.units, strip, scales);
        }
    }

    template <class Weight>
    void multiply(const Weight& weight, const Panel& panel, const Panel& next, int64_t first_token, int64_t tokens,
                  uint8_t* sums, const FloatOutput& output) const {
        auto* group_sums = reinterpret_cast<float*>(sums);
        for (int64_t m = 0; m < tokens; m += kWordTokens, group_sums += kWordTokens * panel_rows) {
            const int64_t count = least(tokens - m, kWordTokens);
            const Group group{(first_token + m) / kWordTokens, count, group_sums, output.at(first_token + m, panel.row),
                              output.stride};
            int64_t n = 0;
            for (; panel.rows - n > (kVectors - 1) * V::rows; n += kVectors * V::rows)
                multiply_group<kVectors>(panel, group, n, panel.rows - n);
            for (; n < panel.rows; n += V::rows)
                multiply_group<1>(panel, group, n, panel.rows - n);
        }
        decode(weight, next);
    }

  private:
    static constexpr int kVectors = V::word_vectors;

    // sums: (8, 32 rows).
    struct Group {
        int64_t index, count;
        float* sums;
        float* out;
        int64_t out_stride;
    };

    // Rows n .. n + N V::rows of the panel with 8 tokens. rows: how many of them there are.
    template <int N>
    QLOCAL_INLINE void multiply_group(const Panel& panel, const Group& group, int64_t n, int64_t rows) const {
        const uint8_t* x = packed_ + layout_.at(group.index, panel.first_unit);
        const uint8_t* w[N];
        typename V::I products[N][kWordTokens];
        repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
            w[i.value] = rows_of(panel, n + i.value * V::rows);
            repeat<kWordTokens>([&](auto m) QLOCAL_INLINE_LAMBDA { products[i.value][m.value] = V::set1_int(0); });
        });
        const int64_t next_group = layout_.units * kWordUnitBytes; // far behind: the CPU does not foresee it
        for (int64_t pair = 0; pair < panel.units * kWordPairs; ++pair, x += kWordTokens * 4) {
            _mm_prefetch(reinterpret_cast<const char*>(x + next_group), _MM_HINT_T0);
            typename V::B words[N];
            repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA { words[i.value] = V::load(w[i.value] + pair * kLineBytes); });
            repeat<kWordTokens>([&](auto m) QLOCAL_INLINE_LAMBDA {
                const auto token = V::set1_four(x + 4 * m.value);
                repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
                    products[i.value][m.value] = V::dot_words(products[i.value][m.value], words[i.value], token);
                });
            });
        }
        const float* x_scales =
            reinterpret_cast<const float*>(packed_) + layout_.scale(group.index, panel.first_unit / kWordChunkUnits);
        repeat<N>([&](auto i) QLOCAL_INLINE_LAMBDA {
            const int64_t at = n + i.value * V::rows;
            const auto scales = V::load_float(scales_of(panel, at));
            repeat<kWordTokens>([&](auto m) QLOCAL_INLINE_LAMBDA {
                float* sum = group.sums + m.value * panel_rows + at;
                const auto scale = V::mul(scales, V::set1(x_scales[m.value]));
                const auto product = V::to_float(products[i.value][m.value]);
                const auto total = panel.is_first ? V::mul(product, scale) : V::fma(product, scale, V::load_float(sum));
                if (!panel.is_last)
                    V::store_float(sum, total);
                else if (m.value < group.count)
                    V::store_some(group.out + m.value * group.out_stride + at, total, rows_left(rows, i.value));
            });
        });
    }

    static QLOCAL_INLINE int64_t rows_left(int64_t rows, int vector) { return least(rows - vector * V::rows, V::rows); }

    static QLOCAL_INLINE const uint8_t* rows_of(const Panel& panel, int64_t n) {
        return panel.strips + n / kStripRows * panel.strip_bytes + n % kStripRows * 4;
    }

    static QLOCAL_INLINE const float* scales_of(const Panel& panel, int64_t n) {
        const uint8_t* strip = panel.strips + n / kStripRows * panel.strip_bytes;
        return reinterpret_cast<const float*>(strip + panel.strip_bytes - kLineBytes) + n % kStripRows;
    }

    WordLayout layout_;
    const uint8_t* packed_;
};

inline int64_t word_bytes(int64_t tokens, int64_t columns) { return WordLayout(tokens, columns).bytes(); }

// StripKernels::multiply.
template <class V>
void multiply_words(const Matrix& weight, const Activations& x, float* out, int64_t out_stride, int64_t first,
                    int64_t last) {
    const WordTiles<V> tiles(x);
    with_strip_type(weight.storage, [&](auto type) {
        multiply_many(tiles, StripWeight<decltype(type)>{weight}, x.tokens, FloatOutput{out, out_stride}, first, last);
    });
}

} // namespace
