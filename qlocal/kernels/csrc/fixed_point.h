// Activations of strips: 16-bit fixed point with one scale a token, as two planes of signed bytes:
// x = scale * (256 * high + low), |256 * high + low| <= 32512.
//
// Since the largest element is at most the root of the sum of all squares, rounding costs at most
// columns / (12 * 32512^2) of the energy of x whatever its outliers are: 7e-7 for 8,960 columns, 2.3e-6 for 29,568.
// bfloat16 costs about 1e-6.
//
// Up to 8 tokens, padded to 1, 2, 4 or 8. After their scales: for every unit of 32 columns and every token 32 bytes of
// `high` and 32 of `low`; then for every unit and token its Sums.

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
    int64_t width, units;

    FixedLayout(int64_t tokens, int64_t columns) : width(padded_tokens(tokens)), units((columns + 63) / 64 * 2) {}

    static constexpr int64_t scales_bytes() { return 64; }
    int64_t sums() const { return scales_bytes() + units * width * 64; }
    int64_t bytes() const { return (sums() + units * width * int64_t(sizeof(Sums)) + 63) / 64 * 64; }
};

} // namespace
