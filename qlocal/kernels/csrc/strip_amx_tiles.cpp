// Products of weights and many tokens on AMX: weights are decoded to tiles of bfloat16. A chunk of 512 tokens is 512
// KB, a panel 32 KB: tokens are loaded past the first-level cache (stream), so that the panel stays there.

#include "amx_layout.h"
#include "column_order.h"
#include "many_tokens.h"
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

// --- Products

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

class AmxTiles {
  public:
    static constexpr int64_t chunk_units = 16;

    explicit AmxTiles(const Activations& x)
        : layout_(x.tokens, x.columns), packed_(static_cast<const uint8_t*>(x.packed)) {}

    static constexpr int64_t strip_bytes(int64_t units) { return units * kTileBytes; }

    int64_t units() const { return layout_.units; }

    template <class Weight>
    void decode(const Weight& weight, int64_t row, int64_t first, int64_t last, uint8_t* strip) const {
        decode_tiles(weight, row, first, last, strip);
    }

    void multiply(const Panel& panel, int64_t first_token, int64_t tokens, int64_t rows, uint8_t* sums, float* out,
                  int64_t out_stride) const {
        const bool has_two_strips = rows > kTileRows;
        const int64_t a_stride = layout_.at(1, 0);
        for (int64_t m = 0; m < tokens; m += 2 * kTileRows, sums += kSumBytes) {
            const int64_t count = least(tokens - m, 2 * kTileRows);
            const uint8_t* at = packed_ + layout_.at((first_token + m) / kTileRows, panel.first_unit);
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

    void prefetch(int64_t unit, int64_t units, int64_t first_token, int64_t tokens, int64_t part, int64_t parts) const {
        const int64_t lines = units * kTileBytes / kLineBytes;
        const int64_t first = lines * part / parts, last = lines * (part + 1) / parts;
        for (int64_t m = 0; m < tokens; m += kTileRows) {
            const uint8_t* next = packed_ + layout_.at((first_token + m) / kTileRows, unit);
            for (int64_t line = first; line < last; ++line)
                _mm_prefetch(reinterpret_cast<const char*>(next + line * kLineBytes), _MM_HINT_T1);
        }
    }

  private:
    TileLayout layout_;
    const uint8_t* packed_;
};

int64_t tile_bytes(int64_t tokens, int64_t columns) { return TileLayout(tokens, columns).bytes(); }

void multiply(const Matrix& weight, const Activations& x, float* out, int64_t out_stride, int64_t first, int64_t last) {
    const UseTiles use_tiles;
    const AmxTiles tiles(x);
    if (weight.layout == qlocal::BF16_ROWS)
        multiply_many(tiles, RowWeight{weight}, x.tokens, out, out_stride, first, last);
    else
        with_strip_type(weight.storage, [&](auto type) {
            multiply_many(tiles, StripWeight<decltype(type)>{weight}, x.tokens, out, out_stride, first, last);
        });
    _mm_sfence(); // store_sums
}

} // namespace

const qlocal::StripKernels qlocal::amx_tiles = {pack_tiles, multiply, tile_bytes, true};
