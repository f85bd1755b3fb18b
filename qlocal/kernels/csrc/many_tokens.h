// Loops around products with many tokens: a panel of weights, two strips wide, is decoded once and multiplied with all
// tokens while it lies in the first-level cache.
//
// Loops from the outside: 512 tokens; 512 rows, whose sums are 1 MB; chunks of columns, of which the tokens are in the
// second-level cache and a panel in the first; panels; tokens. Measured: memory limits this before the arithmetic does,
// and fewer rows or tokens at a time read the activations or decode the weights too often.
//
// `Tiles` is how an instruction set multiplies: constructed with Activations, it has
//   chunk_units             units of 32 columns that a panel spans
//   strip_bytes(units)      of a decoded strip
//   units()                 of a token, as they are packed
//   decode(weight, row, first, last, strip)
//                           units first..last of 16 rows
//   multiply(panel, first_token, tokens, rows, sums, out, out_stride)
//                           sums: of the panel, 32 rows a token, tokens rounded up to 32
//   prefetch(unit, units, first_token, tokens, part, parts)
//                           ask for a part of a chunk that is multiplied next: it comes from memory meanwhile

#pragma once

#include "least.h"
#include "scratch.h"
#include "strip_types.h"

namespace {

using qlocal::Activations;

constexpr int64_t kBlockTokens = 512;
constexpr int64_t kBlockRows = 512;
constexpr int64_t kPanelRows = 2 * kStripRows;

// What all tokens of a block are multiplied with. strips: the second is strip_bytes behind the first.
struct Panel {
    const uint8_t* strips;
    int64_t strip_bytes, first_unit, units;
    bool is_first, is_last; // of the chunks of columns
};

// Quantized strips. units: of a row.
template <class T> struct StripWeight {
    const Matrix& weight;
    StripLayout layout = strip_layout(weight.storage, weight.group_size);
    int64_t units = strip_records(weight) * layout.units;

    // Call use(scales, unit of the record, codes) for units first..last of 16 rows (V::rows of them, `half` as in
    // strip_types.h).
    template <class V, class Use>
    QLOCAL_INLINE void for_units(int64_t row, int half, int64_t first, int64_t last, const Use& use) const {
        const uint8_t* strip = weight.data + row / kStripRows * strip_bytes(weight);
        for (int64_t at = first; at < last;) {
            const int64_t index = at / layout.units, unit = at % layout.units;
            const uint8_t* record = strip + index * layout.record_bytes();
            const typename T::template Scales<V> scales(record, half);
            const int64_t end = least(layout.units, last - index * layout.units);
            for (int64_t i = unit; i < end; ++i, ++at)
                use(scales, i, record + layout.scale_bytes + i * layout.unit_bytes);
        }
    }
};

template <class Tiles, class Weight>
void multiply_block(const Tiles& tiles, const Weight& weight, int64_t first_token, int64_t tokens, int64_t first,
                    int64_t last, float* out, int64_t out_stride) {
    const int64_t units = least(tiles.units(), weight.units), chunk = Tiles::chunk_units;
    const int64_t sum_bytes = (tokens + 31) / 32 * 32 * kPanelRows * int64_t(sizeof(float)); // of a panel
    const int64_t num_panels = (last - first + kPanelRows - 1) / kPanelRows;
    const int64_t strip_bytes = Tiles::strip_bytes(chunk);
    auto* strips = static_cast<uint8_t*>(qlocal::thread_scratch(2 * strip_bytes + sum_bytes * num_panels));
    for (int64_t unit = 0; unit < units; unit += chunk) {
        const int64_t end = least(unit + chunk, units);
        const Panel panel{strips, strip_bytes, unit, end - unit, unit == 0, end == units};
        for (int64_t p = 0; p < num_panels; ++p) {
            const int64_t row = first + p * kPanelRows, rows = least(last - row, kPanelRows);
            for (int64_t strip = 0; strip * kStripRows < rows; ++strip)
                tiles.decode(weight, row + strip * kStripRows, unit, end, strips + strip * strip_bytes);
            if (end + panel.units <= units)
                tiles.prefetch(end, panel.units, first_token, tokens, p, num_panels);
            tiles.multiply(panel, first_token, tokens, rows, strips + 2 * strip_bytes + p * sum_bytes,
                           out + first_token * out_stride + row, out_stride);
        }
    }
}

template <class Tiles, class Weight>
void multiply_many(const Tiles& tiles, const Weight& weight, int64_t num_tokens, float* out, int64_t out_stride,
                   int64_t first, int64_t last) {
    for (int64_t token = 0; token < num_tokens; token += kBlockTokens)
        for (int64_t row = first; row < last; row += kBlockRows)
            multiply_block(tiles, weight, token, least(num_tokens - token, kBlockTokens), row,
                           least(row + kBlockRows, last), out, out_stride);
}

} // namespace
