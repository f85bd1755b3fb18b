// Activations of strips: 16-bit fixed point with one scale a token, as two planes of signed bytes:
// x = scale * (256 * high + low), |256 * high + low| <= 32512.
//
// Since the largest element is at most the root of the sum of all squares, rounding costs at most
// columns / (12 * 32512^2) of the energy of x whatever its outliers are: 7e-7 for 8,960 columns, 2.3e-6 for 29,568.
// bfloat16 costs about 1e-6.
//
// Tokens lie in groups of 8, the last one of 1, 2, 4 or 8. After the scales of all tokens, a group is: for every unit
// of 32 columns and every token 32 bytes of `high` and 32 of `low`; then for every unit and token its Sums.

#pragma once

#include "matrix.h"

namespace {

constexpr int64_t kGroupTokens = 8;
constexpr int32_t kLargestFixed = 127 * 256;

// Sums of 256 * high + low over the columns of a unit, with which offsets and shifts leave the inner loops.
struct Sums {
    int32_t half[2]; // columns 0..15 and 16..31
    int32_t whole;
    float value; // `whole` as a float
};

// Tokens that a group of `tokens` is padded to.
constexpr int64_t padded_tokens(int64_t tokens) { return tokens <= 2 ? tokens : tokens <= 4 ? 4 : kGroupTokens; }

// Where things lie for `tokens` of `columns`. Units are rounded up to the largest record that may end beyond the last
// column (two), and are zero there.
struct FixedLayout {
    int64_t tokens, units;

    FixedLayout(int64_t num_tokens, int64_t columns) : tokens(num_tokens), units((columns + 63) / 64 * 2) {}

    int64_t width(int64_t group) const {
        const int64_t left = tokens - group * kGroupTokens;
        return padded_tokens(left < kGroupTokens ? left : kGroupTokens);
    }
    int64_t num_groups() const { return (tokens + kGroupTokens - 1) / kGroupTokens; }
    int64_t scales_bytes() const { return (num_groups() * kGroupTokens * int64_t(sizeof(float)) + 63) / 64 * 64; }
    int64_t planes(int64_t group) const {
        return scales_bytes() + group * kGroupTokens * units * int64_t(64 + sizeof(Sums));
    }
    int64_t sums(int64_t group) const { return planes(group) + units * width(group) * 64; }
    int64_t bytes() const {
        const int64_t last = num_groups() - 1;
        return (sums(last) + units * width(last) * int64_t(sizeof(Sums)) + 63) / 64 * 64;
    }
};

// What a kernel reads of one group.
struct FixedGroup {
    const uint8_t* planes;
    const Sums* sums;
    const float* scales;
    int64_t first_token, stored_tokens;
};

inline FixedGroup fixed_group(const FixedLayout& layout, const void* packed, int64_t group) {
    const auto* base = static_cast<const uint8_t*>(packed);
    const int64_t first = group * kGroupTokens, left = layout.tokens - first;
    return {base + layout.planes(group), reinterpret_cast<const Sums*>(base + layout.sums(group)),
            reinterpret_cast<const float*>(base) + first, first, left < kGroupTokens ? left : kGroupTokens};
}

} // namespace
