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

// Codes are set into a mantissa, as 1 + code / 256, which needs no conversion: kCodeBit is their lowest bit there.
constexpr int kCodeBit = 15;
constexpr float kCodesBelowOne = 256;

// Bits Bit .. of every row, `Bits` of them, as 1 + code / 256.
template <int Bit, int Bits> QLOCAL_INLINE __m512 in_mantissa(__m512i line) {
    if constexpr (Bit < kCodeBit)
        line = _mm512_slli_epi32(line, kCodeBit - Bit);
    else
        line = _mm512_srli_epi32(line, Bit - kCodeBit);
    const __m512i mask = _mm512_set1_epi32(((1 << Bits) - 1) << kCodeBit), one = _mm512_set1_epi32(0x3f800000);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(line, mask, one, 0xea)); // (line & mask) | one
}

// The codes of a unit. in_line<Line, Byte>: column 4 Line + Byte of every row, as in_mantissa.
template <class Codes> struct TileCodes {
    __m512i lines[8];

    QLOCAL_INLINE explicit TileCodes(const uint8_t* codes) { Codes::template unpack<Avx512Rows>(codes, lines); }

    template <int Line, int Byte> QLOCAL_INLINE __m512 in_line() const { return in_mantissa<8 * Byte, 8>(lines[Line]); }
};

template <> struct TileCodes<Nibbles> {
    const uint8_t* codes;

    QLOCAL_INLINE explicit TileCodes(const uint8_t* codes) : codes(codes) {}

    template <int Line, int Byte> QLOCAL_INLINE __m512 in_line() const {
        return in_mantissa<8 * Byte + Line / 4 * 4, 4>(Avx512Rows::load(codes + kLineBytes * (Line % 4)));
    }
};

// From codes in a mantissa to weights.
struct TileScale {
    __m512 scale, shift;

    template <class T, class Scales> static QLOCAL_INLINE TileScale of(const Scales& scales, int64_t unit, int part) {
        const __m512 scale = plain_nan(scales.scale(unit, part)), per_one = _mm512_set1_ps(kCodesBelowOne);
        if constexpr (T::has_shift)
            return {_mm512_mul_ps(scale, per_one),
                    _mm512_fnmadd_ps(scale, per_one, plain_nan(scales.shift(unit, part)))};
        else
            return {_mm512_mul_ps(scale, per_one),
                    _mm512_mul_ps(scale, _mm512_set1_ps(-kCodesBelowOne - float(1 << T::offset_bits)))};
    }

    QLOCAL_INLINE __m512 weights(__m512 codes) const { return _mm512_fmadd_ps(codes, scale, shift); }
};

constexpr int kUnitParts = 4;

// Part `Part` of kUnitParts of a unit: the lines of the tile with columns 4 Part .. and 16 + 4 Part ..
template <class T, int Part>
QLOCAL_INLINE void part_to_tile(const uint8_t* codes, const TileScale& first, const TileScale& second, uint8_t* tile) {
    const TileCodes<typename T::Codes> unit(codes);
    repeat<2>([&](auto half) QLOCAL_INLINE_LAMBDA {
        constexpr int line = Part + 4 * decltype(half)::value;
        const TileScale& s = decltype(half)::value == 0 ? first : second;
        uint8_t* at = tile + 2 * kLineBytes * line;
        _mm512_store_si512(
            at, bf16_pair(s.weights(unit.template in_line<line, 0>()), s.weights(unit.template in_line<line, 1>())));
        _mm512_store_si512(at + kLineBytes, bf16_pair(s.weights(unit.template in_line<line, 2>()),
                                                      s.weights(unit.template in_line<line, 3>())));
    });
}

} // namespace
