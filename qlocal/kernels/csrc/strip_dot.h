// Dot products of unsigned codes and signed bytes without VNNI: pairs are added up in 16 bits, as long as they fit.

#pragma once

#include "blocks.h"

namespace {

// Products of pairs that may be added up in 16 bits: codes up to `largest`, activations down to -128.
constexpr int products_in_16_bits(int largest) { return 32767 / (2 * 128 * largest); }

// V: multiply_pairs (bytes -> 16 bits), add_16, add_pairs (16 -> 32 bits), and those of strip_types.h.
template <class V, int Largest, int Lines, int First, int Line = 0>
QLOCAL_INLINE typename V::I dot_in_16_bits(const typename V::B (&w)[8], const uint8_t* planes) {
    constexpr int most = products_in_16_bits(Largest), left = Lines - Line, count = left < most ? left : most;
    auto pairs = V::multiply_pairs(w[First + Line], V::set1_four(planes + 4 * Line));
    repeat<count - 1>([&](auto i) QLOCAL_INLINE_LAMBDA {
        constexpr int line = Line + 1 + decltype(i)::value;
        pairs = V::add_16(pairs, V::multiply_pairs(w[First + line], V::set1_four(planes + 4 * line)));
    });
    const auto sums = V::add_pairs(pairs);
    if constexpr (count < left)
        return V::add_int(sums, dot_in_16_bits<V, Largest, Lines, First, Line + count>(w, planes));
    else
        return sums;
}

// Codes of 8 bits do not fit: their upper and lower nibbles are multiplied by themselves.
template <class V, int Largest, int Lines, int First>
QLOCAL_INLINE typename V::I dot_without_vnni(const typename V::B (&w)[8], const uint8_t* planes) {
    if constexpr (Largest < 128) {
        return dot_in_16_bits<V, Largest, Lines, First>(w, planes);
    } else {
        typename V::B low[8], high[8];
        repeat<Lines>([&](auto line) QLOCAL_INLINE_LAMBDA {
            constexpr int i = First + decltype(line)::value;
            low[i] = V::and_(w[i], V::set1_bytes(15));
            high[i] = V::and_(V::template shift_right<4>(w[i]), V::set1_bytes(15));
        });
        return V::add_int(V::template shift_int<4>(dot_in_16_bits<V, 15, Lines, First>(high, planes)),
                          dot_in_16_bits<V, 15, Lines, First>(low, planes));
    }
}

} // namespace
