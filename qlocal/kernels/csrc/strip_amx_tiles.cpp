// Products of weights and many tokens on AMX: weights are decoded to tiles of bfloat16. A chunk of 512 tokens is 512
// KB, a panel 32 KB: tokens are loaded past the first-level cache (stream), so that the panel stays there.

#include "amx_layout.h"
#include "column_order.h"
#include "floats_avx512.h"
#include "many_tokens.h"
#include "norm.h"
#include "strip_tiles.h"
#include "use_tiles.h"

namespace {

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

// Units first..last of 16 rows as tiles.
template <class T>
void decode_tiles(const StripWeight<T>& weight, int64_t row, int64_t first, int64_t last, uint8_t* tiles) {
    weight.template for_units<Avx512Rows>(row, 0, first, last,
                                          [&](const auto& scales, int64_t unit, const uint8_t* codes) {
                                              unit_to_tile<T>(codes, scales, unit, tiles);
                                              tiles += kTileBytes;
                                          });
}

// Rows of bfloat16 as they are stored.
struct RowWeight {
    const Matrix& weight;
    int64_t units = (weight.columns + kUnitColumns - 1) / kUnitColumns;

    const uint8_t* start_of(int64_t row) const {
        return weight.data + (weight.row_map ? weight.row_map[row] : row) * weight.row_bytes;
    }
};

void decode_tiles(const RowWeight& rows, int64_t row, int64_t first, int64_t last, uint8_t* tiles) {
    const int64_t num_rows = least(rows.weight.num_rows - row, kStripRows);
    for (int64_t unit = first; unit < last; ++unit, tiles += kTileBytes) {
        const int64_t left = rows.weight.columns - unit * kUnitColumns;
        const __mmask32 is_there = left >= kUnitColumns ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
        __m512i lines[kTileRows];
        for (int64_t r = 0; r < kTileRows; ++r)
            lines[r] = r < num_rows ? _mm512_maskz_loadu_epi16(is_there, rows.start_of(row + r) + unit * kLineBytes)
                                    : _mm512_setzero_si512();
        transpose(lines);
        for (int64_t r = 0; r < kTileRows; ++r)
            _mm512_store_si512(tiles + r * kLineBytes, lines[r]);
    }
}

// A strip of the first half of the rows and one of the other half, in turns.
template <class Weight> struct HalvesInTurn {
    const Weight& rows;
    int64_t half = rows.weight.num_rows / 2, units = rows.units;
};

template <class Weight>
void decode_tiles(const HalvesInTurn<Weight>& weight, int64_t row, int64_t first, int64_t last, uint8_t* tiles) {
    const int64_t strip = row / kStripRows;
    decode_tiles(weight.rows, strip / 2 * kStripRows + strip % 2 * weight.half, first, last, tiles);
}

// --- Products

constexpr int64_t kSumBytes = 4 * kTileBytes;

// Decodes a panel a tile at a time, while another is multiplied: tiles of both strips in turn.
template <class Weight> class TileByTile {
  public:
    // tiles: so many of them are decoded in `steps` steps.
    TileByTile(const Weight& weight, const Panel& panel, int64_t tile, int64_t tiles, int64_t steps)
        : weight_(weight), panel_(panel), tile_(tile), tiles_(tiles), steps_(steps) {}

    QLOCAL_INLINE void step() {
        for (due_ += tiles_; due_ >= steps_; due_ -= steps_, ++tile_) {
            const int64_t strips = panel_.num_strips(), strip = tile_ % strips, unit = tile_ / strips;
            decode_tiles(weight_, panel_.row + strip * kStripRows, panel_.first_unit + unit,
                         panel_.first_unit + unit + 1, panel_.strips + strip * panel_.strip_bytes + unit * kTileBytes);
        }
    }

  private:
    const Weight& weight_;
    const Panel& panel_;
    int64_t tile_, tiles_, steps_, due_ = 0;
};

// Add the product of MT tiles of tokens and NT strips to `sums`, four tiles: the strips of the first tokens, then of
// the second. a: the first unit of the first tokens; the second ones are a_stride behind. Tiles multiply by themselves
// for 64 cycles a unit, meanwhile `decoding` goes on.
template <int MT, int NT, class Decoding>
void multiply_tiles(const Panel& panel, const uint8_t* a, int64_t a_stride, uint8_t* sums, Decoding decoding) {
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
    const uint8_t *b0 = panel.strips, *b1 = b0 + panel.strip_bytes;
    for (int64_t unit = 0; unit < panel.units; ++unit, a += kTileBytes, b0 += kTileBytes, b1 += kTileBytes) {
        _tile_stream_loadd(4, a, kLineBytes);
        _tile_loadd(6, b0, kLineBytes);
        if constexpr (MT == 2)
            _tile_stream_loadd(5, a + a_stride, kLineBytes);
        if constexpr (NT == 2)
            _tile_loadd(7, b1, kLineBytes);
        for (int64_t line = 0; line < 4; ++line) // sums that are needed next: 16 units ask for all
            _mm_prefetch(reinterpret_cast<const char*>(sums + kSumBytes + (unit * 4 + line) * kLineBytes), _MM_HINT_T0);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (NT == 2)
            _tile_dpbf16ps(1, 4, 7);
        if constexpr (MT == 2)
            _tile_dpbf16ps(2, 5, 6);
        if constexpr (MT == 2 && NT == 2)
            _tile_dpbf16ps(3, 5, 7);
        decoding.step();
    }
    _tile_stored(0, sums, kLineBytes);
    _tile_stored(1, sums + kTileBytes, kLineBytes);
    _tile_stored(2, sums + 2 * kTileBytes, kLineBytes);
    _tile_stored(3, sums + 3 * kTileBytes, kLineBytes);
    __asm__ volatile("" ::: "memory");
}

__m512 sums_of(const uint8_t* sums, int64_t token, int64_t strip) {
    return _mm512_load_ps(sums + (token / kTileRows * 2 + strip) * kTileBytes + token % kTileRows * kLineBytes);
}

// Write what exists of four tiles of sums, past the caches where whole lines can be: reading them first, only to
// overwrite them, would take longer than the product of a short row.
void store_sums(const FloatOutput& output, const uint8_t* sums, int64_t first_token, int64_t tokens,
                const Panel& panel) {
    float* out = output.at(first_token, panel.row);
    const bool is_aligned = (reinterpret_cast<uintptr_t>(out) | uintptr_t(output.stride * 4)) % 64 == 0;
    for (int64_t m = 0; m < tokens; ++m, out += output.stride)
        for (int64_t n = 0; n < panel.rows; n += kTileRows) {
            const __m512 values = sums_of(sums, m, n / kTileRows);
            if (is_aligned && panel.rows - n >= kTileRows)
                _mm512_stream_ps(out + n, values);
            else
                Avx512Rows::store_some(out + n, values, least(panel.rows - n, kTileRows));
        }
}

// Activations of the next product: silu(gate) * up, the sums of HalvesInTurn.
struct TileOutput {
    uint8_t* packed;
    TileLayout layout;
};

// The sums of padding are zero, so tokens that only fill a tile become what they have to be.
void store_sums(const TileOutput& output, const uint8_t* sums, int64_t first_token, int64_t tokens,
                const Panel& panel) {
    const int64_t column = panel.row / 2, unit = column / kUnitColumns, half = column / kTileRows % 2;
    for (int64_t m = 0; m < tokens; m += kTileRows) {
        uint8_t* to = output.packed + output.layout.at((first_token + m) / kTileRows, unit) + half * 32;
        for (int64_t i = 0; i < kTileRows; ++i, to += kLineBytes) {
            const __m512 value = gated<Avx512Floats>(sums_of(sums, m + i, 0), sums_of(sums, m + i, 1));
            _mm256_store_si256(reinterpret_cast<__m256i*>(to), to_bf16(value));
        }
    }
}

class AmxTiles {
  public:
    static constexpr int64_t chunk_units = 16;
    static constexpr int64_t panel_rows = 2 * kStripRows;
    static constexpr int panel_buffers = 2;

    explicit AmxTiles(const Activations& x)
        : layout_(x.tokens, x.columns), packed_(static_cast<const uint8_t*>(x.packed)) {}

    static constexpr int64_t strip_bytes(int64_t units) { return units * kTileBytes; }

    int64_t units() const { return layout_.units; }

    template <class Weight> void decode(const Weight& weight, const Panel& panel) const {
        for (int64_t n = 0; n < panel.num_strips(); ++n)
            decode_tiles(weight, panel.row + n * kStripRows, panel.first_unit, panel.first_unit + panel.units,
                         panel.strips + n * panel.strip_bytes);
    }

    template <class Weight, class Output>
    void multiply(const Weight& weight, const Panel& panel, const Panel& next, int64_t first_token, int64_t tokens,
                  uint8_t* sums, const Output& output) const {
        const bool has_two_strips = panel.rows > kTileRows;
        const int64_t a_stride = layout_.at(1, 0), next_tiles = next.num_strips() * next.units;
        for (int64_t m = 0; m < tokens; m += 2 * kTileRows, sums += kSumBytes) {
            const int64_t count = least(tokens - m, 2 * kTileRows);
            const uint8_t* at = packed_ + layout_.at((first_token + m) / kTileRows, panel.first_unit);
            const int64_t from = next_tiles * m / tokens, to = next_tiles * least(m + 2 * kTileRows, tokens) / tokens;
            if (!panel.is_last)
                prefetch_tokens((first_token + m) / kTileRows, panel);
            const TileByTile decoding(weight, next, from, to - from, panel.units);
            if (count > kTileRows)
                has_two_strips ? multiply_tiles<2, 2>(panel, at, a_stride, sums, decoding)
                               : multiply_tiles<2, 1>(panel, at, a_stride, sums, decoding);
            else
                has_two_strips ? multiply_tiles<1, 2>(panel, at, a_stride, sums, decoding)
                               : multiply_tiles<1, 1>(panel, at, a_stride, sums, decoding);
            if (panel.is_last)
                store_sums(output, sums, first_token + m, count, panel);
        }
    }

  private:
    // Ask for a panel's share of two tiles' next chunk, which comes from memory meanwhile.
    void prefetch_tokens(int64_t token_tile, const Panel& panel) const {
        constexpr int64_t panels = kBlockRows / panel_rows, share = chunk_units * kTileBytes / panels;
        const int64_t at = panel.row / panel_rows % panels * share;
        for (int64_t tile = token_tile; tile < token_tile + 2; ++tile) {
            const uint8_t* next = packed_ + layout_.at(tile, panel.first_unit + panel.units) + at;
            for (int64_t i = 0; i < share; i += kLineBytes)
                _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T1);
        }
    }

    TileLayout layout_;
    const uint8_t* packed_;
};

int64_t tile_bytes(int64_t tokens, int64_t columns) { return TileLayout(tokens, columns).bytes(); }

// Call use(weight) with what the matrix holds.
template <class Use> void with_weight(const Matrix& weight, const Use& use) {
    if (weight.layout == qlocal::BF16_ROWS)
        return use(RowWeight{weight});
    with_strip_type(weight.storage, [&](auto type) { use(StripWeight<decltype(type)>{weight}); });
}

void multiply(const Matrix& weight, const Activations& x, float* out, int64_t out_stride, int64_t first, int64_t last) {
    const UseTiles use_tiles;
    with_weight(weight, [&](const auto& rows) {
        multiply_many(AmxTiles(x), rows, x.tokens, FloatOutput{out, out_stride}, first, last);
    });
    _mm_sfence(); // store_sums
}

void multiply_gated(const Matrix& weight, const Activations& x, void* packed, int64_t first, int64_t last) {
    const UseTiles use_tiles;
    const TileOutput output{static_cast<uint8_t*>(packed), TileLayout(x.tokens, weight.num_rows / 2)};
    with_weight(weight, [&](const auto& rows) {
        const HalvesInTurn<std::decay_t<decltype(rows)>> in_turn{rows};
        multiply_many(AmxTiles(x), in_turn, x.tokens, output, 2 * first, 2 * last);
    });
}

} // namespace

const qlocal::StripKernels qlocal::amx_tiles = {pack_tiles, multiply, tile_bytes, true, multiply_gated};
