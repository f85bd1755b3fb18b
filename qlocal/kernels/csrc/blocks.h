// Decoding of every block storage: how bytes become codes and scales. Shared by all instruction sets.
//
// A block is a number of units of 32 columns. `decode` calls `sink(unit, codes, scale)` for each unit: 32 signed
// bytes, or the nibbles they come from, and an object that turns codes into values. Layouts and values:
// docs/formats.md, kernels/reference/.
//
// Everything lives in an unnamed namespace: each including file is compiled for another instruction set, and a
// function with external linkage could be merged with one that this CPU cannot run.

#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "matrix.h"

#define QLOCAL_INLINE inline __attribute__((always_inline))
#define QLOCAL_INLINE_LAMBDA __attribute__((always_inline))

namespace {

using qlocal::Matrix;

template <int I> struct Index {
    static constexpr int value = I;
};

// Call body(Index<0>{}), body(Index<1>{}), ...: a loop that is certain to be unrolled, so that arrays of
// accumulators stay in registers.
template <int N, int I = 0, class Body> QLOCAL_INLINE void repeat(const Body& body) {
    if constexpr (I < N) {
        body(Index<I>{});
        repeat<N, I + 1>(body);
    }
}

// --- Scales: value = scale(code). `Part` of `V::parts` vectors of the unit; halves of 16 columns may differ.

struct Scale {
    float scale;
    template <class V, int Part> QLOCAL_INLINE typename V::F value(typename V::F code) const {
        return V::mul(code, V::set1(scale));
    }
};

struct ScaleShift {
    float scale, shift;
    template <class V, int Part> QLOCAL_INLINE typename V::F value(typename V::F code) const {
        return V::fma(code, V::set1(scale), V::set1(shift));
    }
};

struct HalfScales {
    const float* scales;
    template <class V, int Part> QLOCAL_INLINE typename V::F value(typename V::F code) const {
        return V::mul(code, V::set1(scales[Part * 2 / V::parts]));
    }
};

struct HalfScaleShifts {
    const float* scales;
    const float* shifts;
    template <class V, int Part> QLOCAL_INLINE typename V::F value(typename V::F code) const {
        constexpr int half = Part * 2 / V::parts;
        return V::fma(code, V::set1(scales[half]), V::set1(shifts[half]));
    }
};

// --- Bits

template <class T> QLOCAL_INLINE T load(const uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

QLOCAL_INLINE float load_f16(const uint8_t* bytes) { return _cvtsh_ss(load<uint16_t>(bytes)); }

QLOCAL_INLINE float load_bf16(const uint8_t* bytes) {
    const uint32_t bits = uint32_t(load<uint16_t>(bytes)) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

QLOCAL_INLINE __m256i load32(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

QLOCAL_INLINE __m256i bytes_of(int value) { return _mm256_set1_epi8(char(value)); }

QLOCAL_INLINE __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, bytes_of(15)); }

QLOCAL_INLINE __m256i high_nibbles(__m256i bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }

// 16 bytes -> 32 codes: all low nibbles, then all high ones.
QLOCAL_INLINE __m256i nibbles16(const uint8_t* bytes) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return low_nibbles(_mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)));
}

// Bit j of `bits` becomes 16 in byte j.
QLOCAL_INLINE __m256i fifth_bits(uint32_t bits) {
#ifdef __AVX512BW__
    return _mm256_maskz_set1_epi8(bits, 16);
#else
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i select = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(int(bits)), order), select);
    return _mm256_and_si256(_mm256_cmpeq_epi8(spread, select), bytes_of(16));
#endif
}

// Move bits of every byte from position From to To and keep those of `Mask` (at To).
template <int From, int To, int Mask> QLOCAL_INLINE __m256i move_bits(__m256i bytes) {
    if constexpr (From > To)
        bytes = _mm256_srli_epi16(bytes, From - To);
    else if constexpr (From < To)
        bytes = _mm256_slli_epi16(bytes, To - From);
    return _mm256_and_si256(bytes, bytes_of(Mask));
}

// --- Nibbles not yet unpacked: instruction sets that look up 16 floats at once index a table of values with them,
// the others ask for the codes. A level is the signed number that a nibble stands for.

constexpr float kCounting[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr float kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct LinearLevels {
    int zero;
    QLOCAL_INLINE __m256i codes(__m256i nibbles) const { return _mm256_sub_epi8(nibbles, bytes_of(zero)); }
    template <class V> QLOCAL_INLINE typename V::F table() const {
        return V::sub(V::load(kCounting), V::set1(float(zero)));
    }
};

struct Iq4Levels {
    QLOCAL_INLINE __m256i codes(__m256i nibbles) const {
        const __m128i levels = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels), nibbles);
    }
    template <class V> QLOCAL_INLINE typename V::F table() const { return V::load(kIq4Levels); }
};

// 16 bytes: columns 0..15 in the low nibbles, 16..31 in the high ones.
template <class Levels> struct SplitNibbles {
    const uint8_t* bytes;
    Levels levels;
    QLOCAL_INLINE __m256i codes() const { return levels.codes(nibbles16(bytes)); }
    template <class V, int Part> QLOCAL_INLINE auto indices() const { return V::template indices<4 * Part>(bytes); }
};

// 32 bytes: one nibble of each, the low (Shift 0) or the high one (Shift 4).
template <int Shift> struct NibbleRun {
    const uint8_t* bytes;
    LinearLevels levels{0};
    QLOCAL_INLINE __m256i codes() const {
        return Shift == 0 ? low_nibbles(load32(bytes)) : high_nibbles(load32(bytes));
    }
    template <class V, int Part> QLOCAL_INLINE auto indices() const {
        return V::template indices<Shift>(bytes + 16 * Part);
    }
};

// Eight signed bytes times a factor, as floats.
QLOCAL_INLINE void scale8(__m128i bytes, float factor, float* out) {
    const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    _mm256_storeu_ps(out, _mm256_mul_ps(values, _mm256_set1_ps(factor)));
}

QLOCAL_INLINE void scale16(__m128i bytes, float factor, float* out) {
    scale8(bytes, factor, out);
    scale8(_mm_srli_si128(bytes, 8), factor, out + 8);
}

// The 8 scales and 8 mins of 6 bits in the 12 bytes of Q4_K and Q5_K, times d and -dmin.
QLOCAL_INLINE void six_bit_pairs(const uint8_t* block, float* scales, float* shifts) {
    const uint32_t first = load<uint32_t>(block + 4), second = load<uint32_t>(block + 8);
    const uint32_t third = load<uint32_t>(block + 12);
    const uint64_t low = first & 0x3f3f3f3f, high = (third & 0x0f0f0f0f) | ((first >> 2) & 0x30303030);
    const uint64_t min_low = second & 0x3f3f3f3f, min_high = ((third >> 4) & 0x0f0f0f0f) | ((second >> 2) & 0x30303030);
    scale8(_mm_cvtsi64_si128(int64_t(low | high << 32)), load_f16(block), scales);
    scale8(_mm_cvtsi64_si128(int64_t(min_low | min_high << 32)), -load_f16(block + 2), shifts);
}

// --- Blocks. units: of 32 columns in a block. bytes: of a block.

struct Q4_0Blocks {
    static constexpr int64_t units = 1, bytes = 18;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        sink(0, SplitNibbles<LinearLevels>{b + 2, {8}}, Scale{load_f16(b)});
    }
};

struct Q4_1Blocks {
    static constexpr int64_t units = 1, bytes = 20;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        sink(0, SplitNibbles<LinearLevels>{b + 4, {0}}, ScaleShift{load_f16(b), load_f16(b + 2)});
    }
};

struct Q5_0Blocks {
    static constexpr int64_t units = 1, bytes = 22;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        const __m256i codes = _mm256_or_si256(nibbles16(b + 6), fifth_bits(load<uint32_t>(b + 2)));
        sink(0, _mm256_sub_epi8(codes, bytes_of(16)), Scale{load_f16(b)});
    }
};

struct Q5_1Blocks {
    static constexpr int64_t units = 1, bytes = 24;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        const __m256i codes = _mm256_or_si256(nibbles16(b + 8), fifth_bits(load<uint32_t>(b + 4)));
        sink(0, codes, ScaleShift{load_f16(b), load_f16(b + 2)});
    }
};

struct Q8_0Blocks {
    static constexpr int64_t units = 1, bytes = 34;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        sink(0, load32(b + 2), Scale{load_f16(b)});
    }
};

struct Q2_KBlocks {
    static constexpr int64_t units = 8, bytes = 84;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        float scales[16], shifts[16];
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
        const __m128i mask = _mm_set1_epi8(15);
        scale16(_mm_and_si128(packed, mask), load_f16(b + 80), scales);
        scale16(_mm_and_si128(_mm_srli_epi16(packed, 4), mask), -load_f16(b + 82), shifts);
        repeat<2>([&](auto half) QLOCAL_INLINE_LAMBDA {
            const __m256i codes = load32(b + 16 + 32 * half.value);
            repeat<4>([&](auto run) QLOCAL_INLINE_LAMBDA {
                constexpr int unit = 4 * decltype(half)::value + decltype(run)::value;
                sink(unit, move_bits<2 * decltype(run)::value, 0, 3>(codes),
                     HalfScaleShifts{scales + 2 * unit, shifts + 2 * unit});
            });
        });
    }
};

struct Q3_KBlocks {
    static constexpr int64_t units = 8, bytes = 110;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        float scales[16];
        const uint64_t low = load<uint64_t>(b + 96), mask = 0x0f0f0f0f0f0f0f0f;
        const uint64_t top = load<uint32_t>(b + 104), tops = 0x30303030;
        const uint64_t first = (low & mask) | (top << 4 & tops) | (top << 2 & tops) << 32;
        const uint64_t second = (low >> 4 & mask) | (top & tops) | (top >> 2 & tops) << 32;
        const __m128i packed = _mm_set_epi64x(int64_t(second), int64_t(first));
        scale16(_mm_sub_epi8(packed, _mm_set1_epi8(32)), load_f16(b + 108), scales);
        const __m256i high = load32(b);
        repeat<2>([&](auto half) QLOCAL_INLINE_LAMBDA {
            const __m256i codes = load32(b + 32 + 32 * half.value);
            repeat<4>([&](auto run) QLOCAL_INLINE_LAMBDA {
                constexpr int unit = 4 * decltype(half)::value + decltype(run)::value;
                const __m256i whole =
                    _mm256_or_si256(move_bits<2 * decltype(run)::value, 0, 3>(codes), move_bits<unit, 2, 4>(high));
                sink(unit, _mm256_sub_epi8(whole, bytes_of(4)), HalfScales{scales + 2 * unit});
            });
        });
    }
};

struct Q4_KBlocks {
    static constexpr int64_t units = 8, bytes = 144;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        float scales[8], shifts[8];
        six_bit_pairs(b, scales, shifts);
        repeat<4>([&](auto run) QLOCAL_INLINE_LAMBDA {
            constexpr int unit = 2 * decltype(run)::value;
            const uint8_t* run_bytes = b + 16 + 16 * unit;
            sink(unit, NibbleRun<0>{run_bytes}, ScaleShift{scales[unit], shifts[unit]});
            sink(unit + 1, NibbleRun<4>{run_bytes}, ScaleShift{scales[unit + 1], shifts[unit + 1]});
        });
    }
};

struct Q5_KBlocks {
    static constexpr int64_t units = 8, bytes = 176;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        float scales[8], shifts[8];
        six_bit_pairs(b, scales, shifts);
        const __m256i high = load32(b + 16);
        repeat<4>([&](auto run) QLOCAL_INLINE_LAMBDA {
            constexpr int unit = 2 * decltype(run)::value;
            const __m256i codes = load32(b + 48 + 16 * unit);
            sink(unit, _mm256_or_si256(low_nibbles(codes), move_bits<unit, 4, 16>(high)),
                 ScaleShift{scales[unit], shifts[unit]});
            sink(unit + 1, _mm256_or_si256(high_nibbles(codes), move_bits<unit + 1, 4, 16>(high)),
                 ScaleShift{scales[unit + 1], shifts[unit + 1]});
        });
    }
};

struct Q6_KBlocks {
    static constexpr int64_t units = 8, bytes = 210;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        float scales[16];
        scale16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 192)), load_f16(b + 208), scales);
        repeat<2>([&](auto half) QLOCAL_INLINE_LAMBDA {
            constexpr int unit = 4 * decltype(half)::value;
            const __m256i first = load32(b + 16 * unit), second = load32(b + 16 * unit + 32);
            const __m256i high = load32(b + 128 + 8 * unit);
            const auto emit = [&](int run, __m256i low, __m256i top) QLOCAL_INLINE_LAMBDA {
                const __m256i codes = _mm256_sub_epi8(_mm256_or_si256(low, top), bytes_of(32));
                sink(unit + run, codes, HalfScales{scales + 2 * (unit + run)});
            };
            emit(0, low_nibbles(first), move_bits<0, 4, 48>(high));
            emit(1, low_nibbles(second), move_bits<2, 4, 48>(high));
            emit(2, high_nibbles(first), move_bits<4, 4, 48>(high));
            emit(3, high_nibbles(second), move_bits<6, 4, 48>(high));
        });
    }
};

struct IQ4_NLBlocks {
    static constexpr int64_t units = 1, bytes = 18;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        sink(0, SplitNibbles<Iq4Levels>{b + 2, {}}, Scale{load_f16(b)});
    }
};

struct IQ4_XSBlocks {
    static constexpr int64_t units = 8, bytes = 136;
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        const float d = load_f16(b);
        const uint32_t high = load<uint16_t>(b + 2), low = load<uint32_t>(b + 4);
        repeat<8>([&](auto unit) QLOCAL_INLINE_LAMBDA {
            constexpr int i = decltype(unit)::value;
            const int scale = int((low >> 4 * i & 15) | (high >> 2 * i & 3) << 4) - 32;
            sink(i, SplitNibbles<Iq4Levels>{b + 8 + 16 * i, {}}, Scale{d * float(scale)});
        });
    }
};

// Our own layout of AWQ and GPTQ weights (affine_layout.py): a block is one group: the scale (2 bytes), the zero
// point (1), a spare byte, then 16 bytes for every unit with its nibbles as in Q4_0.
template <bool IsBf16> struct AffineBlocks {
    int64_t units, bytes;
    explicit AffineBlocks(const Matrix& weight) : units(weight.group_size / 32), bytes(4 + weight.group_size / 2) {}
    template <class Sink> QLOCAL_INLINE void decode(const uint8_t* b, const Sink& sink) const {
        const Scale scale{IsBf16 ? load_bf16(b) : load_f16(b)};
        const LinearLevels levels{b[2]};
        for (int64_t unit = 0; unit < units; ++unit)
            sink(unit, SplitNibbles<LinearLevels>{b + 4 + 16 * unit, levels}, scale);
    }
};

} // namespace
