// Gram matrices with AMX: 32 x 32 elements at a time in four tiles of sums.

#include "gram.h"

#include "least.h"
#include "scratch.h"
#include "use_tiles.h"

namespace {

using qlocal::GramJob;
using qlocal::kPanelColumns;
using qlocal::kStripColumns;
using qlocal::kTileElements;
using qlocal::kTileTokens;

constexpr int64_t kBlock = 2 * kPanelColumns;
constexpr int kTileBytesARow = 64;

// 16 columns of two tokens; `count` of the columns exist.
__m512i token_pair(const uint16_t* first, const uint16_t* second, int64_t count) {
    const __mmask16 there = __mmask16((1u << count) - 1);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, first));
    if (!second)
        return low;
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, second)), 16));
}

void pack_panel(const GramJob& job, int64_t panel) {
    uint16_t* out = job.packed + panel * job.tiles * kTileElements;
    const int64_t column = panel * kPanelColumns;
    const int64_t count = column < job.columns ? least(job.columns - column, kPanelColumns) : 0;
    for (int64_t token = 0; token < job.tiles * kTileTokens; token += 2, out += 2 * kPanelColumns) {
        const uint16_t* at = job.inputs + token * job.columns + column;
        const bool is_there = count > 0 && token < job.tokens, has_second = token + 1 < job.tokens;
        const __m512i pair =
            is_there ? token_pair(at, has_second ? at + job.columns : nullptr, count) : _mm512_setzero_si512();
        _mm512_store_si512(out, pair);
    }
}

void pack(const GramJob& job, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
        pack_panel(job, panel);
}

void transpose_tile(const uint16_t* from, uint16_t* to) {
    __m512i rows[16];
    for (int i = 0; i < 16; ++i)
        rows[i] = _mm512_load_si512(from + i * 32);
    transpose(rows);
    for (int i = 0; i < 16; ++i)
        _mm512_store_si512(to + i * 32, rows[i]);
}

// Sums of 32 x 32 products: `rows` are two transposed panels one after another, `columns` two as they are packed.
void multiply(const uint16_t* rows, const uint16_t* columns, int64_t tiles, float* out) {
    const uint16_t *rows_below = rows + tiles * kTileElements, *columns_right = columns + tiles * kTileElements;
    __asm__ volatile("" ::: "memory"); // GCC 12 does not know that tiles are loaded from memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < tiles * kTileElements; at += kTileElements) {
        _tile_loadd(4, rows + at, kTileBytesARow);
        _tile_loadd(6, columns + at, kTileBytesARow);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, columns_right + at, kTileBytesARow);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, rows_below + at, kTileBytesARow);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    constexpr int64_t stride = kBlock * int64_t(sizeof(float));
    _tile_stored(0, out, stride);
    _tile_stored(1, out + kPanelColumns, stride);
    _tile_stored(2, out + kPanelColumns * kBlock, stride);
    _tile_stored(3, out + kPanelColumns * kBlock + kPanelColumns, stride);
}

// Add a block of sums to gram at (row, column), as far as that exists.
void add_block(const GramJob& job, const float* sums, int64_t row, int64_t column) {
    const int64_t rows = least(kBlock, job.columns - row), columns = least(kBlock, job.columns - column);
    for (int64_t r = 0; r < rows; ++r) {
        float* out = job.gram + (row + r) * job.columns + column;
        for (int64_t c = 0; c < columns; ++c)
            out[c] += sums[r * kBlock + c];
    }
}

void add(const GramJob& job, int64_t strip) {
    alignas(64) float sums[kBlock * kBlock];
    const int64_t first = strip * kStripColumns, last = least(first + kStripColumns, job.columns);
    const int64_t panel_elements = job.tiles * kTileElements;
    const uint16_t* packed = job.packed + first / kPanelColumns * panel_elements;
    const int64_t panels = (last - first + kBlock - 1) / kBlock * 2;
    auto* rows = static_cast<uint16_t*>(qlocal::thread_scratch(panels * panel_elements * int64_t(sizeof(uint16_t))));
    for (int64_t at = 0; at < panels * panel_elements; at += kTileElements)
        transpose_tile(packed + at, rows + at);
    const UseTiles use;
    for (int64_t column = first; column < job.columns; column += kBlock) {
        const uint16_t* columns = job.packed + column / kPanelColumns * panel_elements;
        for (int64_t row = first; row < least(last, column + kBlock); row += kBlock) {
            multiply(rows + (row - first) / kPanelColumns * panel_elements, columns, job.tiles, sums);
            add_block(job, sums, row, column);
        }
    }
}

} // namespace

const qlocal::GramKernels qlocal::amx_gram = {pack, add};
