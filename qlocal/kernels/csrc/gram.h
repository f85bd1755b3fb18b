// What a Gram matrix is summed from, and the operations that AMX offers for it.
//
// Plain data and no inline functions: this header is seen by files compiled for different instruction sets.

#pragma once

#include <cstdint>

namespace qlocal {

// Columns of a panel: inputs lie column by column in panels of 16, tiles of 32 tokens one after another. A tile holds
// 16 pairs of tokens, of each pair 16 columns, both tokens of a column beside each other: 1 KB.
constexpr int64_t kPanelColumns = 16;
constexpr int64_t kTileTokens = 32;
constexpr int64_t kTileElements = kPanelColumns * kTileTokens;

// Columns that one call of `add` is about: their inputs, 512 columns of 1,024 tokens, stay in the second-level cache.
constexpr int64_t kStripColumns = 512;

// Sums over some tokens. Filled by gram.cpp.
//   inputs: (tokens, columns) bf16, contiguous. gram: (columns, columns) float32, contiguous.
//   packed: panels, ceil(columns / 16) of them rounded up to an even number, of `tiles` tiles each; 64-byte aligned.
struct GramJob {
    const uint16_t* inputs;
    float* gram;
    uint16_t* packed;
    int64_t tokens;
    int64_t columns;
    int64_t tiles;
};

struct GramKernels {
    // Fill the panels first..last; what is past the last token or column is zero.
    void (*pack)(const GramJob&, int64_t first, int64_t last);
    // Add x x^T to gram[i, j] for the columns i of a strip and all j from the strip's first on (and some before them).
    void (*add)(const GramJob&, int64_t strip);
};

extern const GramKernels amx_gram;

} // namespace qlocal
