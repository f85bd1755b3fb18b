// A unit of a strip as a tile of bfloat16, the right-hand side of a product on AMX: row i of the tile has columns 2 i
// and 2 i + 1 of all sixteen rows of the weight.

#pragma once

#include "strip_lanes_avx512.h"
#include "strip_types.h"

namespace {

// To the nearest, halves upwards. Not-a-numbers must be the one that arithmetic makes: others could become numbers.
QLOCAL_INLINE __m512i bf16_pair(__m512 even, __m512 odd) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(int(0xffff0000));
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_ternarylogic_epi32(high, upper, low, 0xea); // (high & upper) | low
}

QLOCAL_INLINE __m512 plain_nan(__m512 value) {
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(value, is_nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

struct TileScale {
    __m512 scale, shift;

    template <class T, class Scales> static QLOCAL_INLINE TileScale of(const Scales& scales, int64_t unit, int part) {
        const __m512 scale = plain_nan(scales.scale(unit, part));
        if constexpr (T::has_shift)
            return {scale, plain_nan(scales.shift(unit, part))};
        else
            return {scale, _mm512_mul_ps(scale, _mm512_set1_ps(-float(1 << T::offset_bits)))};
    }

    // The values of byte `Byte` of every row.
    template <int Byte> QLOCAL_INLINE __m512 values(__m512i line) const {
        __m512i codes = Byte == 0 ? line : _mm512_srli_epi32(line, 8 * Byte);
        if constexpr (Byte < 3)
            codes = _mm512_and_si512(codes, _mm512_set1_epi32(255));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), scale, shift);
    }
};

template <class T, class Scales>
QLOCAL_INLINE void unit_to_tile(const uint8_t* codes, const Scales& scales, int64_t unit, uint8_t* tile) {
    __m512i w[8];
    T::Codes::template unpack<Avx512Rows>(codes, w);
    const TileScale first = TileScale::of<T>(scales, unit, 0);
    const TileScale second = T::by_half ? TileScale::of<T>(scales, unit, 1) : first;
    repeat<8>([&](auto j) QLOCAL_INLINE_LAMBDA {
        const __m512i line = w[j.value];
        const TileScale& s = j.value < 4 ? first : second;
        uint8_t* at = tile + 2 * kLineBytes * j.value;
        _mm512_store_si512(at, bf16_pair(s.values<0>(line), s.values<1>(line)));
        _mm512_store_si512(at + kLineBytes, bf16_pair(s.values<2>(line), s.values<3>(line)));
    });
}

} // namespace
