// Loops around products with many tokens: a panel of weights, a few strips wide, is decoded once and multiplied with
// all tokens while it lies in the first-level cache.
//
// Loops from the outside: 512 tokens; 512 rows, whose sums are 1 MB; chunks of columns, of which the tokens are in the
// second-level cache and a panel in the first; panels; tokens. Measured: memory limits this before the arithmetic does,
// and fewer rows or tokens at a time read the activations or decode the weights too often.
//
// `Tiles` is how an instruction set multiplies: constructed with Activations, it has
//   chunk_units             units of 32 columns that a panel spans
//   panel_rows              a multiple of 16
//   panel_buffers           2 where a panel is decoded while the one before is multiplied, else 1
//   strip_bytes(units)      of a decoded strip
//   units()                 of a token, as they are packed
//   decode(weight, panel)
//   multiply(weight, panel, next, first_token, tokens, sums, output)
//                           sums: of the panel, panel_rows a token, tokens rounded up to 32. Decodes `next`, too,
//                           unless it has no rows: meanwhile, or afterwards where both have the same memory
// `Output` is where sums go when they are complete; FloatOutput is what all Tiles know.

#pragma once

#include "least.h"
#include "scratch.h"
#include "strip_types.h"

namespace {

using qlocal::Activations;

constexpr int64_t kBlockTokens = 512;
constexpr int64_t kBlockRows = 512;

// What all tokens of a block are multiplied with: `rows` rows of the weight from `row` on, `units` units from
// `first_unit` on. strips: each strip_bytes behind the one before.
struct Panel {
    uint8_t* strips;
    int64_t strip_bytes, row, rows, first_unit, units;
    bool is_first, is_last; // of the chunks of columns

    int64_t num_strips() const { return (rows + kStripRows - 1) / kStripRows; }
};

// Quantized strips. units: of a row.
template <class T> struct StripWeight {
    const Matrix& weight;
    StripLayout layout = strip_layout(weight.storage, weight.group_size);
    int64_t units = strip_records(weight) * layout.units;

    // The records of the strip with this row.
    const uint8_t* data_of(int64_t row) const { return weight.data + row / kStripRows * strip_bytes(weight); }

    // Call use(scales, unit of the record, codes) for units first..last of 16 rows (V::rows of them, `half` as in
    // strip_types.h).
    template <class V, class Use>
    QLOCAL_INLINE void for_units(int64_t row, int half, int64_t first, int64_t last, const Use& use) const {
        const uint8_t* strip = data_of(row);
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

// out[token * stride + row]
struct FloatOutput {
    float* out;
    int64_t stride;

    float* at(int64_t token, int64_t row) const { return out + token * stride + row; }
};

// The panels of a block in the order in which they are multiplied.
template <class Tiles> struct Panels {
    int64_t first, last, units; // rows; units of the weight that the tokens have, too
    uint8_t* buffers;
    int64_t a_chunk = (last - first + Tiles::panel_rows - 1) / Tiles::panel_rows;
    int64_t count = a_chunk * ((units + Tiles::chunk_units - 1) / Tiles::chunk_units);

    static constexpr int64_t strip_bytes() { return Tiles::strip_bytes(Tiles::chunk_units); }
    static constexpr int64_t panel_bytes() { return Tiles::panel_rows / kStripRows * strip_bytes(); }

    Panel operator[](int64_t index) const {
        const int64_t row = first + index % a_chunk * Tiles::panel_rows, unit = index / a_chunk * Tiles::chunk_units;
        const int64_t end = least(unit + Tiles::chunk_units, units);
        uint8_t* strips = buffers + index % Tiles::panel_buffers * panel_bytes();
        return {strips, strip_bytes(), row,       least(last - row, Tiles::panel_rows),
                unit,   end - unit,    unit == 0, end == units};
    }
};

template <class Tiles, class Weight, class Output>
void multiply_block(const Tiles& tiles, const Weight& weight, int64_t first_token, int64_t tokens, int64_t first,
                    int64_t last, const Output& output) {
    const int64_t sum_bytes = (tokens + 31) / 32 * 32 * Tiles::panel_rows * int64_t(sizeof(float)); // of a panel
    const int64_t num_sums = (last - first + Tiles::panel_rows - 1) / Tiles::panel_rows;
    constexpr int64_t buffer_bytes = Panels<Tiles>::panel_bytes() * Tiles::panel_buffers;
    auto* memory = static_cast<uint8_t*>(qlocal::thread_scratch(buffer_bytes + sum_bytes * num_sums));
    const Panels<Tiles> panels{first, last, least(tiles.units(), weight.units), memory};
    Panel panel = panels[0];
    tiles.decode(weight, panel);
    for (int64_t i = 0; i < panels.count; ++i) {
        const Panel next = i + 1 < panels.count ? panels[i + 1] : Panel{};
        uint8_t* sums = memory + buffer_bytes + i % panels.a_chunk * sum_bytes;
        tiles.multiply(weight, panel, next, first_token, tokens, sums, output);
        panel = next;
    }
}

template <class Tiles, class Weight, class Output>
void multiply_many(const Tiles& tiles, const Weight& weight, int64_t num_tokens, const Output& output, int64_t first,
                   int64_t last) {
    for (int64_t token = 0; token < num_tokens; token += kBlockTokens)
        for (int64_t row = first; row < last; row += kBlockRows)
            multiply_block(tiles, weight, token, least(num_tokens - token, kBlockTokens), row,
                           least(row + kBlockRows, last), output);
}

} // namespace
