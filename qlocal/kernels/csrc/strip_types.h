// How the records of strips become codes and scales, for any vector type V; layouts: strip_layout.h.
//
// V offers `rows` (lanes: 16, or 8 for half a strip) and vectors of them: B (a line, or its half: 4 codes a row),
// I (int32), F (float). `half` is 0, or 1 for the upper 8 rows.
//
// A type has: Codes (largest code, unpack: 8 vectors a unit), offset_bits (the codes stand for code - 2^offset_bits;
// -1: none), by_half (a scale for every 16 columns), has_shift (weight = scale * code + shift).
// `Scales` of a record gives scale(unit, part) and shift(unit, part), part being the half of the unit where by_half.

#pragma once

#include "blocks.h"
#include "strip_layout.h"

namespace {

// --- Codes

template <class V, int From, int To, int Mask> QLOCAL_INLINE typename V::B moved_bits(typename V::B bytes) {
    if constexpr (From > To)
        bytes = V::template shift_right<From - To>(bytes);
    else if constexpr (From < To)
        bytes = V::template shift_left<To - From>(bytes);
    return V::and_(bytes, V::set1_bytes(Mask));
}

// Add to codes the bits From .. of `bytes`, `Bits` a code, four or eight codes from w[first] on.
template <class V, int Bits, int To, int First = 0>
QLOCAL_INLINE void add_bits(typename V::B bytes, typename V::B (&w)[8]) {
    repeat<Bits == 1 ? 8 : 4>([&](auto b) QLOCAL_INLINE_LAMBDA {
        constexpr int i = decltype(b)::value, mask = ((1 << Bits) - 1) << To;
        w[First + i] = V::or_(w[First + i], moved_bits<V, Bits * i, To, mask>(bytes));
    });
}

struct Nibbles {
    static constexpr int largest = 15;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        repeat<4>([&](auto j) QLOCAL_INLINE_LAMBDA {
            const auto both = V::load(codes + kLineBytes * j.value);
            w[j.value] = moved_bits<V, 0, 0, 15>(both);
            w[j.value + 4] = moved_bits<V, 4, 0, 15>(both);
        });
    }
};

struct FiveBits {
    static constexpr int largest = 31;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        Nibbles::unpack<V>(codes, w);
        add_bits<V, 1, 4>(V::load(codes + 4 * kLineBytes), w);
    }
};

struct SixBits {
    static constexpr int largest = 63;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        Nibbles::unpack<V>(codes, w);
        add_bits<V, 2, 4>(V::load(codes + 4 * kLineBytes), w);
        add_bits<V, 2, 4, 4>(V::load(codes + 5 * kLineBytes), w);
    }
};

struct WholeBytes {
    static constexpr int largest = 255;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        repeat<8>([&](auto j) QLOCAL_INLINE_LAMBDA { w[j.value] = V::load(codes + kLineBytes * j.value); });
    }
};

struct TwoBits {
    static constexpr int largest = 3;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        repeat<8>([&](auto j) QLOCAL_INLINE_LAMBDA {
            constexpr int i = decltype(j)::value;
            w[i] = moved_bits<V, 2 * (i % 4), 0, 3>(V::load(codes + kLineBytes * (i / 4)));
        });
    }
};

struct ThreeBits {
    static constexpr int largest = 7;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        TwoBits::unpack<V>(codes, w);
        add_bits<V, 1, 2>(V::load(codes + 2 * kLineBytes), w);
    }
};

// The levels of IQ4_NL and IQ4_XS, plus 128.
constexpr uint8_t kIq4Codes[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

struct Iq4Codes {
    static constexpr int largest = 255;
    template <class V> static QLOCAL_INLINE void unpack(const uint8_t* codes, typename V::B (&w)[8]) {
        Nibbles::unpack<V>(codes, w);
        repeat<8>([&](auto j) QLOCAL_INLINE_LAMBDA { w[j.value] = V::look_up(kIq4Codes, w[j.value]); });
    }
};

// --- Scales. Construct with the record and `half`.

constexpr int64_t kHalvesBytes = 2 * kStripRows; // 16 values of 16 bits

// A float16 of every unit.
template <class V> struct UnitScales {
    const uint8_t* at;
    UnitScales(const uint8_t* record, int half) : at(record + half * V::rows * 2) {}
    QLOCAL_INLINE typename V::F scale(int64_t unit, int) const { return V::load_f16(at + unit * kHalvesBytes); }
};

template <class V> struct UnitScaleShifts : UnitScales<V> {
    using UnitScales<V>::UnitScales;
    QLOCAL_INLINE typename V::F shift(int64_t, int) const { return V::load_f16(this->at + kHalvesBytes); }
};

// One scale and zero point a group.
template <class V, bool IsBf16> struct AffineScales {
    typename V::F scales, shifts;
    AffineScales(const uint8_t* record, int half) {
        const uint8_t* at = record + half * V::rows * 2;
        scales = IsBf16 ? V::load_bf16(at) : V::load_f16(at);
        const auto zero_points = V::load_unsigned(record + kHalvesBytes + half * V::rows);
        shifts = V::sub(V::zero(), V::mul(scales, zero_points));
    }
    QLOCAL_INLINE typename V::F scale(int64_t, int) const { return scales; }
    QLOCAL_INLINE typename V::F shift(int64_t, int) const { return shifts; }
};

// A float16, and a signed byte for every unit or half of one.
template <class V, int PerUnit> struct SignedScales {
    typename V::F d;
    const uint8_t* at;
    SignedScales(const uint8_t* record, int half)
        : d(V::load_f16(record + half * V::rows * 2)), at(record + kHalvesBytes + half * V::rows) {}
    QLOCAL_INLINE typename V::F scale(int64_t unit, int part) const {
        return V::mul(d, V::load_signed(at + (unit * PerUnit + part) * kStripRows));
    }
};

// d, dmin, and the 12 bytes of Q4_K and Q5_K: scales and mins of 6 bits; the upper two bits of those of units 4..7
// stand above those of units 0..3.
template <class V> struct SixBitScales {
    typename V::F d, minus_dmin;
    uint8_t scales[8][kStripRows], mins[8][kStripRows];
    SixBitScales(const uint8_t* record, int half)
        : d(V::load_f16(record + half * V::rows * 2)),
          minus_dmin(V::sub(V::zero(), V::load_f16(record + kHalvesBytes + half * V::rows * 2))) {
        const auto* bytes = reinterpret_cast<const __m128i*>(record + 2 * kHalvesBytes);
        const auto low = [](__m128i v, int mask) { return _mm_and_si128(v, _mm_set1_epi8(char(mask))); };
        const auto put = [](uint8_t* at, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), v); };
        for (int i = 0; i < 4; ++i) {
            const __m128i first = _mm_loadu_si128(bytes + i), second = _mm_loadu_si128(bytes + 4 + i);
            const __m128i third = _mm_loadu_si128(bytes + 8 + i);
            put(scales[i], low(first, 63));
            put(mins[i], low(second, 63));
            put(scales[4 + i], _mm_or_si128(low(third, 15), low(_mm_srli_epi16(first, 2), 48)));
            put(mins[4 + i], _mm_or_si128(low(_mm_srli_epi16(third, 4), 15), low(_mm_srli_epi16(second, 2), 48)));
        }
        half_rows = half * V::rows;
    }
    int64_t half_rows;
    QLOCAL_INLINE typename V::F scale(int64_t unit, int) const {
        return V::mul(d, V::load_unsigned(scales[unit] + half_rows));
    }
    QLOCAL_INLINE typename V::F shift(int64_t unit, int) const {
        return V::mul(minus_dmin, V::load_unsigned(mins[unit] + half_rows));
    }
};

// d, dmin, and for every 16 columns a byte with the scale in its low nibble and the min in the high one.
template <class V> struct NibbleScales {
    typename V::F d, minus_dmin;
    const uint8_t* at;
    NibbleScales(const uint8_t* record, int half)
        : d(V::load_f16(record + half * V::rows * 2)),
          minus_dmin(V::sub(V::zero(), V::load_f16(record + kHalvesBytes + half * V::rows * 2))),
          at(record + 2 * kHalvesBytes + half * V::rows) {}
    QLOCAL_INLINE typename V::F scale(int64_t unit, int part) const {
        return V::mul(d, V::template load_nibbles<0>(at + (unit * 2 + part) * kStripRows));
    }
    QLOCAL_INLINE typename V::F shift(int64_t unit, int part) const {
        return V::mul(minus_dmin, V::template load_nibbles<4>(at + (unit * 2 + part) * kStripRows));
    }
};

// --- Types

struct SymmetricType {
    static constexpr bool by_half = false, has_shift = false;
};

struct ShiftedType {
    static constexpr bool by_half = false, has_shift = true;
    static constexpr int offset_bits = -1;
};

struct Q4_0Strips : SymmetricType {
    using Codes = Nibbles;
    static constexpr int offset_bits = 3;
    template <class V> using Scales = UnitScales<V>;
};

struct Q4_1Strips : ShiftedType {
    using Codes = Nibbles;
    template <class V> using Scales = UnitScaleShifts<V>;
};

struct Q5_0Strips : SymmetricType {
    using Codes = FiveBits;
    static constexpr int offset_bits = 4;
    template <class V> using Scales = UnitScales<V>;
};

struct Q5_1Strips : ShiftedType {
    using Codes = FiveBits;
    template <class V> using Scales = UnitScaleShifts<V>;
};

struct Q8_0Strips : SymmetricType {
    using Codes = WholeBytes;
    static constexpr int offset_bits = 7;
    template <class V> using Scales = UnitScales<V>;
};

struct Q2_KStrips : ShiftedType {
    using Codes = TwoBits;
    static constexpr bool by_half = true;
    template <class V> using Scales = NibbleScales<V>;
};

struct Q3_KStrips : SymmetricType {
    using Codes = ThreeBits;
    static constexpr bool by_half = true;
    static constexpr int offset_bits = 2;
    template <class V> using Scales = SignedScales<V, 2>;
};

struct Q4_KStrips : ShiftedType {
    using Codes = Nibbles;
    template <class V> using Scales = SixBitScales<V>;
};

struct Q5_KStrips : ShiftedType {
    using Codes = FiveBits;
    template <class V> using Scales = SixBitScales<V>;
};

struct Q6_KStrips : SymmetricType {
    using Codes = SixBits;
    static constexpr bool by_half = true;
    static constexpr int offset_bits = 5;
    template <class V> using Scales = SignedScales<V, 2>;
};

struct IQ4_NLStrips : SymmetricType {
    using Codes = Iq4Codes;
    static constexpr int offset_bits = 7;
    template <class V> using Scales = UnitScales<V>;
};

struct IQ4_XSStrips : SymmetricType {
    using Codes = Iq4Codes;
    static constexpr int offset_bits = 7;
    template <class V> using Scales = SignedScales<V, 1>;
};

template <bool IsBf16> struct AffineStrips : ShiftedType {
    using Codes = Nibbles;
    template <class V> using Scales = AffineScales<V, IsBf16>;
};

// Call `use` with the type of a storage.
template <class Use> void with_strip_type(int32_t storage, const Use& use) {
    switch (storage) {
    case qlocal::Q4_0:
        return use(Q4_0Strips{});
    case qlocal::Q4_1:
        return use(Q4_1Strips{});
    case qlocal::Q5_0:
        return use(Q5_0Strips{});
    case qlocal::Q5_1:
        return use(Q5_1Strips{});
    case qlocal::Q8_0:
        return use(Q8_0Strips{});
    case qlocal::Q2_K:
        return use(Q2_KStrips{});
    case qlocal::Q3_K:
        return use(Q3_KStrips{});
    case qlocal::Q4_K:
        return use(Q4_KStrips{});
    case qlocal::Q5_K:
        return use(Q5_KStrips{});
    case qlocal::Q6_K:
        return use(Q6_KStrips{});
    case qlocal::IQ4_NL:
        return use(IQ4_NLStrips{});
    case qlocal::IQ4_XS:
        return use(IQ4_XSStrips{});
    case qlocal::AFFINE_F16:
        return use(AffineStrips<false>{});
    case qlocal::AFFINE_BF16:
        return use(AffineStrips<true>{});
    }
}

} // namespace
