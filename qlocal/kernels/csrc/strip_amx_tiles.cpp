// Products of weights and many tokens on AMX: a panel of weights, two strips wide, is turned into bfloat16 once and
// multiplied with all tokens while it lies in the first-level cache.
//
// Loops from the outside: 512 tokens; 512 rows, whose sums are 1 MB; chunks of 512 columns, of which the tokens are 512
// KB in the second-level cache and a panel 32 KB in the first; panels; 32 tokens. Measured: memory limits this before
// the tiles do, and fewer rows or tokens at a time read the activations or decode the weights too often.

#include "amx_layout.h"
#include "column_order.h"
#include "strip_tiles.h"
#include "use_tiles.h"

namespace {

using qlocal::Activations;

constexpr int64_t kBlockTokens = 512;
constexpr int64_t kBlockStrips = 32;
constexpr int64_t kChunkUnits = 16;

// --- Activations

// To the nearest, ties to even; what is not a number stays none.
__m256i to_bf16(__m512 values) {
    const __m512i bits = _mm512_castps_si512(plain_nan(values));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

// x: (columns,) in the order of the weight.
void pack_token(const float* x, int64_t columns, const TileLayout& layout, int64_t token, uint8_t* packed) {
    uint8_t* to = packed + layout.at(token / kTileRows, 0) + token % kTileRows * kLineBytes;
    for (int64_t k = 0; k < layout.units * kUnitColumns; k += kUnitColumns, to += kTileBytes)
        for (int64_t half = 0; half < 2; ++half) {
            const int64_t at = k + half * 16, left = columns - at;
            const __mmask16 is_there = left >= 16 ? 0xffff : left > 0 ? __mmask16((1u << left) - 1) : 0;
            const __m256i values = to_bf16(_mm512_maskz_loadu_ps(is_there, x + at));
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + half * 32), values);
        }
}

void pack_tiles(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, const int64_t* order, void* packed,
                int64_t first, int64_t last) {
    const TileLayout layout(tokens, columns);
    auto* bytes = static_cast<uint8_t*>(packed);
    for (int64_t token = first; token < last; ++token)
        pack_token(in_order(x + token * x_stride, columns, order), columns, layout, token, bytes);
    if (last == tokens)
        for (int64_t token = tokens; token < layout.token_tiles * kTileRows; ++token)
            pack_token(x, 0, layout, token, bytes);
}

// --- Weights

// Quantized strips. units: of a row; chunk: units that are decoded at once, whole records.
template <class T> struct StripWeight {
    const Matrix& weight;
    StripLayout layout = strip_layout(weight.storage, weight.group_size);
    int64_t units = strip_records(weight) * layout.units;
    int64_t chunk = layout.units < kChunkUnits ? kChunkUnits / layout.units * layout.units : layout.units;

    // Units first..last of 16 rows as tiles.
    void decode(int64_t row, int64_t first, int64_t last, uint8_t* tiles) const {
        const uint8_t* strip = weight.data + row / kStripRows * strip_bytes(weight);
        const uint8_t* record = strip + first / layout.units * layout.record_bytes();
        for (int64_t start = first; start < last; start += layout.units, record += layout.record_bytes()) {
            const typename T::template Scales<Avx512Rows> scales(record, 0);
            const uint8_t* codes = record + layout.scale_bytes;
            for (int64_t unit = 0; unit < layout.units && start + unit < last; ++unit, tiles += kTileBytes)
                unit_to_tile<T>(codes + unit * layout.unit_bytes, scales, unit, tiles);
        }
    }
};

// Rows of bfloat16 as they are stored.
struct RowWeight {
    const Matrix& weight;
    int64_t units = (weight.columns + kUnitColumns - 1) / kUnitColumns;
    int64_t chunk = kChunkUnits;

    void decode(int64_t row, int64_t first, int64_t last, uint8_t* tiles) const {
        const int64_t rows = weight.num_rows - row < kStripRows ? weight.num_rows - row : kStripRows;
        for (int64_t unit = first; unit < last; ++unit, tiles += kTileBytes) {
            const int64_t left = weight.columns - unit * kUnitColumns;
            const __mmask32 is_there = left >= kUnitColumns ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
            __m512i lines[kTileRows];
            for (int64_t r = 0; r < kTileRows; ++r)
                lines[r] = r < rows ? _mm512_maskz_loadu_epi16(is_there, start_of(row + r) + unit * kLineBytes)
                                    : _mm512_setzero_si512();
            transpose(lines);
            for (int64_t r = 0; r < kTileRows; ++r)
                _mm512_store_si512(tiles + r * kLineBytes, lines[r]);
        }
    }

    const uint8_t* start_of(int64_t row) const {
        return weight.data + (weight.row_map ? weight.row_map[row] : row) * weight.row_bytes;
    }
};

// --- Products

// What one panel is multiplied with: `units` of the columns.
struct Panel {
    const uint8_t* tiles; // of the first strip, then of the second
    int64_t units;
    bool is_first, is_last; // of the chunks of columns
};

constexpr int64_t kSumBytes = 4 * kTileBytes;

// Add the product of MT tiles of tokens and NT strips to `sums`, four tiles: the strips of the first tokens, then of
// the second. a: the first unit of the first tokens; the second ones are a_stride behind.
template <int MT, int NT> void multiply_tiles(const Panel& panel, const uint8_t* a, int64_t a_stride, uint8_t* sums) {
    __asm__ volatile("" ::: "memory"); // GCC 12 does not know that tiles are loaded from memory
    if (panel.is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, kLineBytes);
        _tile_loadd(1, sums + kTileBytes, kLineBytes);
        _tile_loadd(2, sums + 2 * kTileBytes, kLineBytes);
        _tile_loadd(3, sums + 3 * kTileBytes, kLineBytes);
    }
    const uint8_t *b0 = panel.tiles, *b1 = b0 + panel.units * kTileBytes;
    for (int64_t unit = 0; unit < panel.units; ++unit, a += kTileBytes, b0 += kTileBytes, b1 += kTileBytes) {
        _tile_loadd(4, a, kLineBytes);
        _tile_loadd(6, b0, kLineBytes);
        if constexpr (MT == 2)
            _tile_loadd(5, a + a_stride, kLineBytes);
        if constexpr (NT == 2)
            _tile_loadd(7, b1, kLineBytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (NT == 2)
            _tile_dpbf16ps(1, 4, 7);
        if constexpr (MT == 2)
            _tile_dpbf16ps(2, 5, 6);
        if constexpr (MT == 2 && NT == 2)
            _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, kLineBytes);
    _tile_stored(1, sums + kTileBytes, kLineBytes);
    _tile_stored(2, sums + 2 * kTileBytes, kLineBytes);
    _tile_stored(3, sums + 3 * kTileBytes, kLineBytes);
}

// Write what exists of four tiles of sums to `out`, past the caches where whole lines can be: reading them first, only
// to overwrite them, would take longer than the product of a short row.
void store_sums(const uint8_t* sums, int64_t tokens, int64_t rows, float* out, int64_t out_stride) {
    const bool is_aligned = (reinterpret_cast<uintptr_t>(out) | uintptr_t(out_stride * 4)) % 64 == 0;
    for (int64_t m = 0; m < tokens; ++m)
        for (int64_t n = 0; n < rows; n += kTileRows) {
            const int64_t tile = m / kTileRows * 2 + n / kTileRows;
            const __m512 values = _mm512_load_ps(sums + tile * kTileBytes + m % kTileRows * kLineBytes);
            float* to = out + m * out_stride + n;
            if (is_aligned && rows - n >= kTileRows)
                _mm512_stream_ps(to, values);
            else
                Avx512Rows::store_some(to, values, rows - n < kTileRows ? rows - n : kTileRows);
        }
}

// Tokens of a block, at a chunk of columns.
struct TokenBlock {
    const uint8_t* a; // the first unit of the chunk
    int64_t a_stride, tokens;

    // Sums of all tokens with one panel of `rows` rows.
    void multiply(const Panel& panel, int64_t rows, uint8_t* sums, float* out, int64_t out_stride) const {
        const bool has_two_strips = rows > kTileRows;
        for (int64_t m = 0; m < tokens; m += 2 * kTileRows, sums += kSumBytes) {
            const int64_t count = tokens - m < 2 * kTileRows ? tokens - m : 2 * kTileRows;
            const uint8_t* at = a + m / kTileRows * a_stride;
            if (count > kTileRows)
                has_two_strips ? multiply_tiles<2, 2>(panel, at, a_stride, sums)
                               : multiply_tiles<2, 1>(panel, at, a_stride, sums);
            else
                has_two_strips ? multiply_tiles<1, 2>(panel, at, a_stride, sums)
                               : multiply_tiles<1, 1>(panel, at, a_stride, sums);
            if (panel.is_last)
                store_sums(sums, count, rows, out + m * out_stride, out_stride);
        }
    }

    // Ask for part `index` of `count` of the chunk that follows, `units` further on: it comes from memory while this
    // one is multiplied.
    void prefetch_next(int64_t units, int64_t index, int64_t count) const {
        const int64_t lines = units * kTileBytes / kLineBytes;
        const int64_t first = lines * index / count, last = lines * (index + 1) / count;
        for (int64_t m = 0; m < tokens; m += kTileRows) {
            const uint8_t* next = a + m / kTileRows * a_stride + units * kTileBytes;
            for (int64_t line = first; line < last; ++line)
                _mm_prefetch(reinterpret_cast<const char*>(next + line * kLineBytes), _MM_HINT_T1);
        }
    }
};

template <class Weight>
void multiply_block(const Weight& weight, const Activations& x, int64_t first_token, int64_t first, int64_t last,
                    float* out, int64_t out_stride) {
    const TileLayout tiles(x.tokens, x.columns);
    const int64_t units = tiles.units < weight.units ? tiles.units : weight.units, chunk = weight.chunk;
    const int64_t tokens = x.tokens - first_token < kBlockTokens ? x.tokens - first_token : kBlockTokens;
    const int64_t sum_bytes = (tokens + 31) / 32 * kSumBytes; // of a panel
    const int64_t num_panels = (last - first + 2 * kStripRows - 1) / (2 * kStripRows);
    auto* panel_tiles = static_cast<uint8_t*>(qlocal::thread_scratch(2 * chunk * kTileBytes + sum_bytes * num_panels));
    const auto* packed = static_cast<const uint8_t*>(x.packed);
    for (int64_t unit = 0; unit < units; unit += chunk) {
        const int64_t end = unit + chunk < units ? unit + chunk : units;
        const TokenBlock block{packed + tiles.at(first_token / kTileRows, unit), tiles.at(1, 0), tokens};
        const Panel panel{panel_tiles, end - unit, unit == 0, end == units};
        for (int64_t p = 0; p < num_panels; ++p) {
            const int64_t row = first + p * 2 * kStripRows;
            const int64_t rows = last - row < 2 * kStripRows ? last - row : 2 * kStripRows;
            for (int64_t strip = 0; strip * kStripRows < rows; ++strip)
                weight.decode(row + strip * kStripRows, unit, end, panel_tiles + strip * panel.units * kTileBytes);
            if (end + panel.units <= units)
                block.prefetch_next(panel.units, p, num_panels);
            block.multiply(panel, rows, panel_tiles + 2 * chunk * kTileBytes + p * sum_bytes,
                           out + first_token * out_stride + row, out_stride);
        }
    }
}

template <class Weight>
void multiply_all(const Weight& weight, const Activations& x, float* out, int64_t out_stride, int64_t first,
                  int64_t last) {
    for (int64_t token = 0; token < x.tokens; token += kBlockTokens)
        for (int64_t row = first; row < last; row += kBlockStrips * kStripRows) {
            const int64_t end = row + kBlockStrips * kStripRows < last ? row + kBlockStrips * kStripRows : last;
            multiply_block(weight, x, token, row, end, out, out_stride);
        }
}

void multiply(const Matrix& weight, const Activations& x, float* out, int64_t out_stride, int64_t first, int64_t last) {
    const UseTiles tiles;
    if (weight.layout == qlocal::BF16_ROWS)
        multiply_all(RowWeight{weight}, x, out, out_stride, first, last);
    else
        with_strip_type(weight.storage, [&](auto type) {
            multiply_all(StripWeight<decltype(type)>{weight}, x, out, out_stride, first, last);
        });
    _mm_sfence(); // store_sums
}

} // namespace

const qlocal::StripKernels qlocal::amx_tiles = {pack_tiles, multiply};
