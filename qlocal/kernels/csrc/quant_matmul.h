// Rows as they are stored, in float32, for any vector type V: products with few tokens, and decoding to a panel.
//
// V offers: F (a vector of `lanes` floats), parts = 32 / lanes, zero, set1, load, store, mul, fma(a, b, c) = a b + c,
// sum, widen<part>(32 signed bytes), and load_bf16 / load_f16 of `lanes` stored values. Where looks_up_16: sub,
// indices<shift>(16 bytes) and look_up(table of 16, indices), which ignores upper bits.

#pragma once

#include "blocks.h"

namespace {

using qlocal::FloatGroup;
using qlocal::Storage;

// Rows that take turns, a chunk of columns each, so that a chunk of x is read from the nearest cache by all of them.
constexpr int64_t kRowsInTurn = 8;
constexpr int64_t kChunkColumns = 256;
constexpr int64_t kUnit = 32;

QLOCAL_INLINE const uint8_t* row_start(const Matrix& weight, int64_t row) {
    return weight.data + (weight.row_map ? weight.row_map[row] : row) * weight.row_bytes;
}

// The values of one vector of a unit.
template <class V, int Part, class S> QLOCAL_INLINE typename V::F values_of(__m256i codes, const S& scale) {
    return scale.template value<V, Part>(V::template widen<Part>(codes));
}

template <class V, int Part, class Nibbles, class S>
QLOCAL_INLINE typename V::F values_of(const Nibbles& nibbles, const S& scale) {
    if constexpr (V::looks_up_16)
        return V::look_up(scale.template value<V, 0>(nibbles.levels.template table<V>()),
                          nibbles.template indices<V, Part>());
    else
        return values_of<V, Part>(nibbles.codes(), scale);
}

// Sink: multiplies a unit by the activations of M tokens at `x` (packed, at the block's first column).
template <class V, int M, int Chains> struct Dot {
    const float* x;
    typename V::F (&sums)[Chains * M];

    template <int Part> QLOCAL_INLINE void add(int64_t unit, typename V::F value) const {
        const float* vectors = x + (unit * V::parts + Part) * M * V::lanes;
        repeat<M>([&](auto m) QLOCAL_INLINE_LAMBDA {
            auto& sum = sums[Part % Chains * M + m.value];
            sum = V::fma(value, V::load(vectors + m.value * V::lanes), sum);
        });
    }

    template <class C, class S> QLOCAL_INLINE void operator()(int64_t unit, const C& codes, const S& scale) const {
        repeat<V::parts>([&](auto part) QLOCAL_INLINE_LAMBDA {
            constexpr int p = decltype(part)::value;
            add<p>(unit, values_of<V, p>(codes, scale));
        });
    }
};

// Sink: writes the values of a unit to a row of floats.
template <class V> struct Write {
    float* out;

    template <class C, class S> QLOCAL_INLINE void operator()(int64_t unit, const C& codes, const S& scale) const {
        repeat<V::parts>([&](auto part) QLOCAL_INLINE_LAMBDA {
            constexpr int p = decltype(part)::value;
            V::store(out + unit * kUnit + p * V::lanes, values_of<V, p>(codes, scale));
        });
    }
};

// --- Rows: how the columns of one row are walked. `dot` adds the columns from..to to the sums.

template <class Blocks> struct BlockRows {
    Blocks blocks;

    int64_t chunk() const {
        const int64_t columns = blocks.units * kUnit;
        return columns < kChunkColumns ? kChunkColumns / columns * columns : columns;
    }

    const uint8_t* at(const uint8_t* row, int64_t column) const {
        return row + column / (blocks.units * kUnit) * blocks.bytes;
    }

    template <class V, int M, int Chains>
    QLOCAL_INLINE void dot(const uint8_t* row, const float* packed, int64_t from, int64_t to,
                           typename V::F (&sums)[Chains * M]) const {
        const int64_t columns = blocks.units * kUnit;
        const uint8_t* block = at(row, from);
        for (int64_t k = from; k < to; k += columns, block += blocks.bytes)
            blocks.decode(block, Dot<V, M, Chains>{packed + k * M, sums});
    }

    template <class V> QLOCAL_INLINE void write(const uint8_t* row, float* out, int64_t columns) const {
        const int64_t block_columns = blocks.units * kUnit;
        for (int64_t k = 0; k < columns; k += block_columns, row += blocks.bytes)
            blocks.decode(row, Write<V>{out + k});
    }
};

struct F32Values {
    static constexpr int64_t bytes = 4;
    template <class V> static QLOCAL_INLINE typename V::F load_vector(const uint8_t* at) {
        return V::load(reinterpret_cast<const float*>(at));
    }
};

struct F16Values {
    static constexpr int64_t bytes = 2;
    template <class V> static QLOCAL_INLINE typename V::F load_vector(const uint8_t* at) { return V::load_f16(at); }
};

struct Bf16Values {
    static constexpr int64_t bytes = 2;
    template <class V> static QLOCAL_INLINE typename V::F load_vector(const uint8_t* at) { return V::load_bf16(at); }
};

// Unquantized rows of any length: the last vector is completed with zeros on the stack, never read past the end.
template <class Values> struct FloatRows {
    static int64_t chunk() { return kChunkColumns; }
    static const uint8_t* at(const uint8_t* row, int64_t column) { return row + column * Values::bytes; }

    template <class V> static QLOCAL_INLINE typename V::F load_some(const uint8_t* at, int64_t count) {
        if (count >= V::lanes)
            return Values::template load_vector<V>(at);
        uint8_t padded[V::lanes * Values::bytes] = {};
        std::memcpy(padded, at, size_t(count * Values::bytes));
        return Values::template load_vector<V>(padded);
    }

    template <class V, int M, int Chains>
    QLOCAL_INLINE void dot(const uint8_t* row, const float* packed, int64_t from, int64_t to,
                           typename V::F (&sums)[Chains * M]) const {
        int64_t k = from;
        for (; k + kUnit <= to; k += kUnit) {
            const Dot<V, M, Chains> sink{packed + k * M, sums};
            repeat<V::parts>([&](auto part) QLOCAL_INLINE_LAMBDA {
                constexpr int p = decltype(part)::value;
                const uint8_t* at = row + (k + p * V::lanes) * Values::bytes;
                sink.template add<p>(0, Values::template load_vector<V>(at));
            });
        }
        for (; k < to; k += V::lanes)
            Dot<V, M, Chains>{packed + k * M, sums}.template add<0>(0, load_some<V>(row + k * Values::bytes, to - k));
    }

    template <class V> QLOCAL_INLINE void write(const uint8_t* row, float* out, int64_t columns) const {
        int64_t k = 0;
        for (; k + V::lanes <= columns; k += V::lanes)
            V::store(out + k, Values::template load_vector<V>(row + k * Values::bytes));
        if (k < columns) {
            float values[V::lanes];
            V::store(values, load_some<V>(row + k * Values::bytes, columns - k));
            std::memcpy(out + k, values, size_t(columns - k) * sizeof(float));
        }
    }
};

// --- Kernels

// Ask for the bytes that a row needs at its next turn: they arrive while the other rows take theirs. Past the end
// of the matrix this does nothing.
QLOCAL_INLINE void prefetch(const uint8_t* from, const uint8_t* to) {
    for (; from < to; from += 64)
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
}

template <class V, int M, class Rows>
void matmul_rows(const Rows& rows, const Matrix& weight, const float* packed, float* out, int64_t out_stride,
                 int64_t stored_tokens, int64_t first, int64_t last) {
    // One chain of sums for a single token would wait for its own additions. More tokens have two as well, so that each
    // gets the bits that it would get alone.
    constexpr int chains = 2;
    const int64_t step = rows.chunk();
    for (int64_t start = first; start < last; start += kRowsInTurn) {
        const int64_t count = last - start < kRowsInTurn ? last - start : kRowsInTurn;
        const uint8_t* row[kRowsInTurn];
        typename V::F kept[kRowsInTurn][chains * M];
        for (int64_t r = 0; r < count; ++r) {
            row[r] = row_start(weight, start + r);
            repeat<chains * M>([&](auto i) QLOCAL_INLINE_LAMBDA { kept[r][i.value] = V::zero(); });
        }
        for (int64_t from = 0; from < weight.columns; from += step) {
            const int64_t to = from + step < weight.columns ? from + step : weight.columns;
            for (int64_t r = 0; r < count; ++r) {
                prefetch(rows.at(row[r], to), rows.at(row[r], to + step));
                typename V::F sums[chains * M];
                repeat<chains * M>([&](auto i) QLOCAL_INLINE_LAMBDA { sums[i.value] = kept[r][i.value]; });
                rows.template dot<V, M, chains>(row[r], packed, from, to, sums);
                repeat<chains * M>([&](auto i) QLOCAL_INLINE_LAMBDA { kept[r][i.value] = sums[i.value]; });
            }
        }
        for (int64_t r = 0; r < count; ++r)
            for (int64_t m = 0; m < stored_tokens; ++m)
                out[m * out_stride + start + r] = V::sum(V::add(kept[r][m], kept[r][M + m]));
    }
}

template <class V, class Rows>
void decode_rows(const Rows& rows, const Matrix& weight, float* out, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row, out += weight.columns)
        rows.template write<V>(row_start(weight, row), out, weight.columns);
}

// Call `use` with the row type of the matrix's storage.
template <class Use> void with_rows(const Matrix& weight, const Use& use) {
    switch (weight.storage) {
    case Storage::F32:
        return use(FloatRows<F32Values>{});
    case Storage::F16:
        return use(FloatRows<F16Values>{});
    case Storage::BF16:
        return use(FloatRows<Bf16Values>{});
    case Storage::Q4_0:
        return use(BlockRows<Q4_0Blocks>{});
    case Storage::Q4_1:
        return use(BlockRows<Q4_1Blocks>{});
    case Storage::Q5_0:
        return use(BlockRows<Q5_0Blocks>{});
    case Storage::Q5_1:
        return use(BlockRows<Q5_1Blocks>{});
    case Storage::Q8_0:
        return use(BlockRows<Q8_0Blocks>{});
    case Storage::Q2_K:
        return use(BlockRows<Q2_KBlocks>{});
    case Storage::Q3_K:
        return use(BlockRows<Q3_KBlocks>{});
    case Storage::Q4_K:
        return use(BlockRows<Q4_KBlocks>{});
    case Storage::Q5_K:
        return use(BlockRows<Q5_KBlocks>{});
    case Storage::Q6_K:
        return use(BlockRows<Q6_KBlocks>{});
    case Storage::IQ4_NL:
        return use(BlockRows<IQ4_NLBlocks>{});
    case Storage::IQ4_XS:
        return use(BlockRows<IQ4_XSBlocks>{});
    case Storage::AFFINE_F16:
        return use(BlockRows<AffineBlocks<false>>{AffineBlocks<false>(weight)});
    case Storage::AFFINE_BF16:
        return use(BlockRows<AffineBlocks<true>>{AffineBlocks<true>(weight)});
    }
}

template <class V>
void matmul(const Matrix& weight, const FloatGroup& x, float* out, int64_t out_stride, int64_t stored_tokens,
            int64_t first, int64_t last) {
    with_rows(weight, [&](const auto& rows) {
        const auto run = [&](auto m) {
            matmul_rows<V, decltype(m)::value>(rows, weight, x.packed, out, out_stride, stored_tokens, first, last);
        };
        if (x.tokens == 1)
            run(Index<1>{});
        else if (x.tokens == 2)
            run(Index<2>{});
        else if (x.tokens == 4)
            run(Index<4>{});
        else
            run(Index<8>{});
    });
}

template <class V> void decode(const Matrix& weight, float* out, int64_t first, int64_t last) {
    with_rows(weight, [&](const auto& rows) { decode_rows<V>(rows, weight, out, first, last); });
}

} // namespace
