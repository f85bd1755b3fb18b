// Activations of strips for many tokens on AMX: bfloat16 in tiles of 16 tokens and a unit of 32 columns, 1 KB each, the
// rows of a tile being tokens. The tiles of 16 tokens follow each other in the order of the columns.

#pragma once

#include "matrix.h"

namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 1024;

struct TileLayout {
    int64_t units, token_tiles;

    TileLayout(int64_t tokens, int64_t columns)
        : units((columns + 63) / 64 * 2), token_tiles((tokens + kTileRows - 1) / kTileRows) {}

    int64_t at(int64_t token_tile, int64_t unit) const { return (token_tile * units + unit) * kTileBytes; }
    int64_t bytes() const { return at(token_tiles, 0); }
};

} // namespace
