// Rounding activations to fixed point (fixed_point.h). Plain loops over 32 columns that the compiler turns into vectors
// of whatever instruction set the including file is compiled for.

#pragma once

#include <cstring>

#include "column_order.h"
#include "fixed_point.h"

namespace {

// The bits of |x|; they are ordered as the values are, with infinity and then NaN behind all numbers.
inline uint32_t magnitude_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

inline float largest_magnitude(const float* x, int64_t columns) {
    uint32_t largest = 0;
    for (int64_t k = 0; k < columns; ++k) {
        const uint32_t bits = magnitude_bits(x[k]);
        largest = bits > largest ? bits : largest;
    }
    float value;
    std::memcpy(&value, &largest, sizeof value);
    return value;
}

// Integers up to `largest_code` for what has one scale: x is about scale * code.
struct Fixed {
    float scale, per_scale;

    // Below 1e-30 the scale could not be inverted: all codes are zero. What is not finite gives a scale of NaN.
    Fixed(const float* x, int64_t count, int32_t largest_code) {
        const float largest = largest_magnitude(x, count);
        const bool is_finite = largest <= 3.402823466e38f;
        per_scale = is_finite && largest > 1e-30f ? float(largest_code) / largest : 0.0f;
        scale = is_finite ? largest / float(largest_code) : largest - largest;
    }

    // 32 codes of `left` values; what is missing is zero.
    void round(const float* x, int64_t left, int32_t (&codes)[32]) const {
        constexpr float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer, ties to even
        float padded[32] = {};
        const float* from = padded;
        if (left >= 32 && per_scale != 0.0f)
            from = x;
        else if (left > 0 && per_scale != 0.0f)
            std::memcpy(padded, x, size_t(left) * sizeof(float));
        for (int k = 0; k < 32; ++k) {
            const float moved = from[k] * per_scale + magic;
            int32_t bits;
            std::memcpy(&bits, &moved, sizeof bits);
            codes[k] = bits - 0x4b400000;
        }
    }
};

// One unit: 32 codes, planes of 64 bytes.
inline void pack_unit(const int32_t (&codes)[32], int8_t* planes, Sums& sums) {
    for (int k = 0; k < 32; ++k)
        planes[k] = int8_t((codes[k] + 128) >> 8);
    for (int k = 0; k < 32; ++k)
        planes[32 + k] = int8_t(codes[k]); // what is left is the low byte, read as a signed one
    for (int half = 0; half < 2; ++half) {
        sums.half[half] = 0;
        for (int k = 0; k < 16; ++k)
            sums.half[half] += codes[16 * half + k];
    }
    sums.whole = sums.half[0] + sums.half[1];
    sums.value = float(sums.whole);
}

// One token. x: (columns,) in the order of the weight.
inline void pack_token(const float* x, int64_t columns, const FixedLayout& layout, void* packed, int64_t token) {
    auto* base = static_cast<uint8_t*>(packed);
    auto* planes = reinterpret_cast<int8_t*>(base + layout.scales_bytes());
    auto* sums = reinterpret_cast<Sums*>(base + layout.sums());
    const Fixed fixed(x, columns, kLargestFixed);
    reinterpret_cast<float*>(base)[token] = fixed.scale;
    for (int64_t unit = 0; unit < layout.units; ++unit) {
        int32_t codes[32];
        fixed.round(x + unit * 32, columns - unit * 32, codes);
        pack_unit(codes, planes + (unit * layout.width + token) * 64, sums[unit * layout.width + token]);
    }
}

inline int64_t fixed_bytes(int64_t tokens, int64_t columns) { return FixedLayout(tokens, columns).bytes(); }

// StripKernels::pack. Tokens that pad are zero.
inline void pack_fixed(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, const int64_t* order,
                       void* packed, int64_t first, int64_t last) {
    const FixedLayout layout(tokens, columns);
    for (int64_t token = first; token < last; ++token)
        pack_token(in_order(x + token * x_stride, columns, order), columns, layout, packed, token);
    if (last == tokens)
        for (int64_t token = tokens; token < layout.width; ++token)
            pack_token(x, 0, layout, packed, token);
}

} // namespace
