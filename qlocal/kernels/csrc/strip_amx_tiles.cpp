// Products of weights and many tokens on AMX: weights are decoded to tiles of bfloat16. A chunk of 512 tokens is 512
// KB, a panel 32 KB: tokens are loaded past the first-level cache (stream), so that the panel stays there.

#include "amx_layout.h"
#include "column_order.h"
#include "floats_avx512.h"
#include "many_tokens.h"
#include "norm.h"
#include "strip_tiles.h"
#include "use_tiles.h"

#include <optional>

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

// Rows of bfloat16 as they are stored.
struct RowWeight {
    const Matrix& weight;
    int64_t units = (weight.columns + kUnitColumns - 1) / kUnitColumns;

    const uint8_t* start_of(int64_t row) const {
        return weight.data + (weight.row_map ? weight.row_map[row] : row) * weight.row_bytes;
    }
};

// A strip of the first half of the rows and one of the other half, in turns.
template <class Weight> struct HalvesInTurn {
    const Weight& rows;
    int64_t half = rows.weight.num_rows / 2, units = rows.units;

    int64_t row_of(int64_t row) const {
        const int64_t strip = row / kStripRows;
        return strip / 2 * kStripRows + strip % 2 * half;
    }
};

// Decodes units of 16 rows to tiles, in kUnitParts parts each: begin(row, unit), then part(0, tile) to the last. Units
// of the same rows come in ascending order.
template <class Weight> class UnitDecoder;

template <class T> class UnitDecoder<StripWeight<T>> {
  public:
    explicit UnitDecoder(const StripWeight<T>& weight) : weight_(weight) {}

    void begin(int64_t row, int64_t unit) {
        const StripLayout& layout = weight_.layout;
        const uint8_t* record = weight_.data_of(row) + unit / layout.units * layout.record_bytes();
        if (record != record_)
            scales_.emplace(record_ = record, 0);
        const int64_t in_record = unit % layout.units;
        first_ = TileScale::of<T>(*scales_, in_record, 0);
        second_ = T::by_half ? TileScale::of<T>(*scales_, in_record, 1) : first_;
        codes_ = record + layout.scale_bytes + in_record * layout.unit_bytes;
    }

    void part(int64_t index, uint8_t* tile) const {
        switch (index) {
        case 0:
            return part_to_tile<T, 0>(codes_, first_, second_, tile);
        case 1:
            return part_to_tile<T, 1>(codes_, first_, second_, tile);
        case 2:
            return part_to_tile<T, 2>(codes_, first_, second_, tile);
        case 3:
            return part_to_tile<T, 3>(codes_, first_, second_, tile);
        }
    }

  private:
    const StripWeight<T>& weight_;
    const uint8_t *record_ = nullptr, *codes_ = nullptr;
    std::optional<typename T::template Scales<Avx512Rows>> scales_;
    TileScale first_, second_;
};

// The transposition is the first part, and all.
template <> class UnitDecoder<RowWeight> {
  public:
    explicit UnitDecoder(const RowWeight& rows) : rows_(rows) {}

    void begin(int64_t row, int64_t unit) { row_ = row, unit_ = unit; }

    void part(int64_t index, uint8_t* tile) const {
        if (index > 0)
            return;
        const int64_t num_rows = least(rows_.weight.num_rows - row_, kStripRows);
        const int64_t left = rows_.weight.columns - unit_ * kUnitColumns;
        const __mmask32 is_there = left >= kUnitColumns ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
        __m512i lines[kTileRows];
        for (int64_t r = 0; r < kTileRows; ++r)
            lines[r] = r < num_rows ? _mm512_maskz_loadu_epi16(is_there, rows_.start_of(row_ + r) + unit_ * kLineBytes)
                                    : _mm512_setzero_si512();
        transpose(lines);
        for (int64_t r = 0; r < kTileRows; ++r)
            _mm512_store_si512(tile + r * kLineBytes, lines[r]);
    }

  private:
    const RowWeight& rows_;
    int64_t row_ = 0, unit_ = 0;
};

template <class Weight> class UnitDecoder<HalvesInTurn<Weight>> : public UnitDecoder<Weight> {
  public:
    explicit UnitDecoder(const HalvesInTurn<Weight>& halves) : UnitDecoder<Weight>(halves.rows), halves_(halves) {}

    void begin(int64_t row, int64_t unit) { UnitDecoder<Weight>::begin(halves_.row_of(row), unit); }

  private:
    const HalvesInTurn<Weight>& halves_;
};

// Decodes a panel part by part.
template <class Weight> class PanelDecoder {
  public:
    PanelDecoder(const Weight& weight, const Panel& panel) : units_(weight), panel_(panel) {}

    int64_t num_parts() const { return panel_.num_strips() * panel_.units * kUnitParts; }

    // Not inlined: tiles are multiplied around it.
    __attribute__((noinline)) void next_part() {
        if (part_ == 0)
            units_.begin(panel_.row + strip_ * kStripRows, panel_.first_unit + unit_);
        units_.part(part_, panel_.strips + strip_ * panel_.strip_bytes + unit_ * kTileBytes);
        if (++part_ < kUnitParts)
            return;
        part_ = 0;
        if (++unit_ == panel_.units)
            unit_ = 0, ++strip_;
    }

  private:
    UnitDecoder<Weight> units_;
    Panel panel_;
    int64_t strip_ = 0, unit_ = 0, part_ = 0;
};

// --- Products

constexpr int64_t kSumBytes = 4 * kTileBytes;

// Decodes a panel in so many steps, while another is multiplied.
template <class Weight> class DecodingMeanwhile {
  public:
    DecodingMeanwhile(const Weight& weight, const Panel& panel, int64_t steps)
        : decoder_(weight, panel), parts_(decoder_.num_parts()), steps_(steps) {}

    QLOCAL_INLINE void step() {
        for (due_ += parts_; due_ >= steps_; due_ -= steps_)
            decoder_.next_part();
    }

  private:
    PanelDecoder<Weight> decoder_;
    int64_t parts_, steps_, due_ = 0;
};

// Add the product of MT tiles of tokens and NT strips to `sums`, four tiles: the strips of the first tokens, then of
// the second. a: the first unit of the first tokens; the second ones are a_stride behind. Tiles multiply by themselves
// for 64 cycles a unit, meanwhile `decoding` goes on.
template <int MT, int NT, class Decoding>
void multiply_tiles(const Panel& panel, const uint8_t* a, int64_t a_stride, uint8_t* sums, Decoding& decoding) {
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
        PanelDecoder<Weight> decoder(weight, panel);
        for (int64_t i = 0; i < decoder.num_parts(); ++i)
            decoder.next_part();
    }

    template <class Weight, class Output>
    void multiply(const Weight& weight, const Panel& panel, const Panel& next, int64_t first_token, int64_t tokens,
                  uint8_t* sums, const Output& output) const {
        const bool has_two_strips = panel.rows > kTileRows;
        const int64_t a_stride = layout_.at(1, 0), blocks = (tokens + 2 * kTileRows - 1) / (2 * kTileRows);
        DecodingMeanwhile<Weight> decoding(weight, next, blocks * panel.units);
        for (int64_t m = 0; m < tokens; m += 2 * kTileRows, sums += kSumBytes) {
            const int64_t count = least(tokens - m, 2 * kTileRows);
            const uint8_t* at = packed_ + layout_.at((first_token + m) / kTileRows, panel.first_unit);
            if (!panel.is_last)
                prefetch_tokens((first_token + m) / kTileRows, panel);
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
