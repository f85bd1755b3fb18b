// Products of strips and 1 to 8 tokens in fixed point, for any vector type V (strip_types.h).

#pragma once

#include "fixed_pack.h"
#include "strip_types.h"

namespace {

using qlocal::Activations;

// How far ahead of what is in use memory is asked for, beyond the borders of pages, where the prefetcher of the CPU
// stops: first into the second-level cache, which can wait for more lines at a time than the first, then into that.
// Measured best of 1024 to 16384 and 0 to 2048; either alone leaves a twentieth of the bandwidth or more.
constexpr int64_t kPrefetchBytes = 3072, kPrefetchNearBytes = 1024;

QLOCAL_INLINE void prefetch_after(const uint8_t* at, int64_t bytes) {
    const auto* address = reinterpret_cast<const char*>(at);
    for (int64_t i = 0; i < bytes; i += kLineBytes) {
        _mm_prefetch(address + kPrefetchBytes + i, _MM_HINT_T1);
        _mm_prefetch(address + kPrefetchNearBytes + i, _MM_HINT_T0);
    }
}

// What a kernel reads of all tokens. count: those that are not padding.
struct FixedTokens {
    const uint8_t* planes;
    const Sums* sums;
    const float* scales;
    int64_t count;
};

// sums += the product of a unit, or of its half `Part`, and one token.
template <class V, class T, int Part, class Scales>
QLOCAL_INLINE void add_product(const typename V::B (&w)[8], const uint8_t* planes, const Sums& sums,
                               const Scales& scales, int64_t unit, typename V::F& total) {
    constexpr int lines = T::by_half ? 4 : 8, first = T::by_half ? 4 * Part : 0;
    constexpr int largest = T::Codes::largest;
    const auto high = V::template dot<largest, lines, first>(w, planes);
    const auto low = V::template dot<largest, lines, first>(w, planes + 32);
    auto product = V::add_int(V::template shift_int<8>(high), low);
    if constexpr (T::offset_bits >= 0) {
        const int32_t sum = T::by_half ? sums.half[Part] : sums.whole;
        product = V::sub_int(product, V::template shift_int<T::offset_bits>(V::set1_int(sum)));
    }
    total = V::fma(V::to_float(product), scales.scale(unit, Part), total);
    if constexpr (T::has_shift) {
        const float sum = T::by_half ? float(sums.half[Part]) : sums.value;
        total = V::fma(V::set1(sum), scales.shift(unit, Part), total);
    }
}

// totals[m] = the products of V::rows rows of a strip and M tokens, not yet times the scale of the token.
template <class V, class T, int M>
QLOCAL_INLINE void multiply_rows(const uint8_t* record, int64_t records, const StripLayout& layout, int half,
                                 const FixedTokens& x, typename V::F (&totals)[M]) {
    const uint8_t* planes = x.planes;
    const Sums* sums = x.sums;
    repeat<M>([&](auto m) QLOCAL_INLINE_LAMBDA { totals[m.value] = V::zero(); });
    for (int64_t i = 0; i < records; ++i, record += layout.record_bytes()) {
        const typename T::template Scales<V> scales(record, half);
        const uint8_t* codes = record + layout.scale_bytes;
        if (half == 0)
            prefetch_after(record, layout.scale_bytes);
        for (int64_t unit = 0; unit < layout.units; ++unit, codes += layout.unit_bytes) {
            if (half == 0)
                prefetch_after(codes, layout.unit_bytes);
            typename V::B w[8];
            T::Codes::template unpack<V>(codes + half * V::rows * 4, w);
            repeat<M>([&](auto m) QLOCAL_INLINE_LAMBDA {
                add_product<V, T, 0>(w, planes, *sums, scales, unit, totals[m.value]);
                if constexpr (T::by_half)
                    add_product<V, T, 1>(w, planes + 16, *sums, scales, unit, totals[m.value]);
                planes += 64;
                ++sums;
            });
        }
    }
}

template <class V, class T, int M>
void multiply_strip(const Matrix& weight, const StripLayout& layout, const uint8_t* strip, const FixedTokens& x,
                    float* out, int64_t out_stride, int64_t rows) {
    for (int half = 0; half * V::rows < rows; ++half) {
        typename V::F totals[M];
        multiply_rows<V, T, M>(strip, strip_records(weight), layout, half, x, totals);
        const int64_t first = half * V::rows, stored = rows - first < V::rows ? rows - first : V::rows;
        repeat<M>([&](auto m) QLOCAL_INLINE_LAMBDA {
            if (m.value < x.count)
                V::store_some(out + m.value * out_stride + first, V::mul(totals[m.value], V::set1(x.scales[m.value])),
                              stored);
        });
    }
}

// StripKernels::multiply.
template <class V>
void multiply_strips(const Matrix& weight, const Activations& x, float* out, int64_t out_stride, int64_t first,
                     int64_t last) {
    const FixedLayout fixed(x.tokens, x.columns);
    const auto* packed = static_cast<const uint8_t*>(x.packed);
    const FixedTokens tokens{packed + fixed.scales_bytes(), reinterpret_cast<const Sums*>(packed + fixed.sums()),
                             reinterpret_cast<const float*>(packed), x.tokens};
    const StripLayout layout = strip_layout(weight.storage, weight.group_size);
    const int64_t bytes = strip_bytes(weight);
    with_strip_type(weight.storage, [&](auto type) {
        using T = decltype(type);
        for (int64_t row = first; row < last; row += kStripRows) {
            const uint8_t* strip = weight.data + row / kStripRows * bytes;
            const int64_t rows = last - row < kStripRows ? last - row : kStripRows;
            const auto run = [&](auto m) {
                multiply_strip<V, T, decltype(m)::value>(weight, layout, strip, tokens, out + row, out_stride, rows);
            };
            fixed.width == 1   ? run(Index<1>{})
            : fixed.width == 2 ? run(Index<2>{})
            : fixed.width == 4 ? run(Index<4>{})
                               : run(Index<8>{});
        }
    });
}

} // namespace
