// Activations of strips for many tokens without AMX: words, which are integers of 16 bits, with one scale for every
// token and chunk of 256 columns.
//
// Tokens lie in groups of 8, the last one padded with zeros. After the scales, (groups, chunks, 8), a group is units of
// 32 columns, of 512 bytes: 16 pairs of columns, a pair being two words of each of the 8 tokens. Pairs 2 j and 2 j + 1
// are columns 4 j and 4 j + 2, and 4 j + 1 and 4 j + 3: so two pairs come out of a line of codes (strip_layout.h)
// without exchanging bytes.

#pragma once

#include <cstdint>

namespace {

constexpr int64_t kWordTokens = 8;
constexpr int64_t kWordChunkUnits = 8;
constexpr int64_t kWordUnitBytes = 512;
constexpr int64_t kWordPairs = 16; // of a unit

// Largest weight and activation: the sum of 256 products stays below 2^31, also if every weight were two too large.
constexpr int32_t kLargestWeightWord = 1900;
constexpr int32_t kLargestWord = 4400;

struct WordLayout {
    int64_t units, groups;

    WordLayout(int64_t tokens, int64_t columns)
        : units((columns + 63) / 64 * 2), groups((tokens + kWordTokens - 1) / kWordTokens) {}

    int64_t chunks() const { return (units + kWordChunkUnits - 1) / kWordChunkUnits; }
    int64_t scale(int64_t group, int64_t chunk) const { return (group * chunks() + chunk) * kWordTokens; }
    int64_t scale_bytes() const { return (scale(groups, 0) * int64_t(sizeof(float)) + 63) / 64 * 64; }
    int64_t at(int64_t group, int64_t unit) const { return scale_bytes() + (group * units + unit) * kWordUnitBytes; }
    int64_t bytes() const { return at(groups, 0); }
};

} // namespace
