// Activations of strips for many tokens where bytes are multiplied: signed bytes, with one scale for every token and
// unit of 32 columns.
//
// Tokens lie in groups of 4, the last one padded with zeros. A group is records of 192 bytes, one a unit: 32 codes of
// each token, the scales of the 4 tokens, and then, as they are needed to take offsets off, the sums of the codes with
// their sign turned: of both halves of the unit, and of all of it, 4 tokens each.

#pragma once

#include <cstdint>

namespace {

constexpr int64_t kByteTokens = 4;
constexpr int32_t kLargestByte = 127;

struct ByteUnit {
    int8_t codes[kByteTokens][32];
    float scales[kByteTokens];
    int32_t minus_sums[3][kByteTokens];
};
static_assert(sizeof(ByteUnit) == 192);

struct ByteLayout {
    int64_t units, groups;

    ByteLayout(int64_t tokens, int64_t columns)
        : units((columns + 63) / 64 * 2), groups((tokens + kByteTokens - 1) / kByteTokens) {}

    int64_t at(int64_t group, int64_t unit) const { return group * units + unit; } // of ByteUnits
    int64_t bytes() const { return groups * units * int64_t(sizeof(ByteUnit)); }
};

} // namespace
