// Weights of AWQ and GPTQ as records (affine_layout.py), made from neutral codes: column 2 j in the low nibble of byte
// j of a row, column 2 j + 1 in the high one.

#include <cstdint>
#include <cstring>

#include "thread_pool.h"

namespace {

// Filled by Python (native.py). codes: (num_rows, columns / 2). scales: (num_rows, groups), 16 bits each. zero_points:
// (num_rows, groups). order: column k of a record is column order[k], or null.
struct AffineSource {
    const uint8_t* codes;
    const uint8_t* scales;
    const uint8_t* zero_points;
    const int64_t* order;
    int64_t num_rows, columns, group_size;
};

constexpr int64_t kHeaderBytes = 4;
constexpr int64_t kUnitCodes = 32, kUnitBytes = 16;
constexpr int64_t kRowsTogether = 16;

// Byte j of `out` holds columns j and j + 16 of the unit that starts at `codes`.
void put_unit(const uint8_t* codes, uint8_t* out) {
    for (int64_t b = 0; b < kUnitBytes / 2; ++b) {
        const int first = codes[b], second = codes[b + kUnitBytes / 2];
        out[2 * b] = uint8_t((first & 15) | (second & 15) << 4);
        out[2 * b + 1] = uint8_t((first >> 4) | (second & 0xf0));
    }
}

void put_ordered_unit(const uint8_t* row, const int64_t* order, uint8_t* out) {
    const auto code = [&](int64_t k) { return row[order[k] / 2] >> (order[k] % 2 * 4) & 15; };
    for (int64_t j = 0; j < kUnitBytes; ++j)
        out[j] = uint8_t(code(j) | code(j + kUnitBytes) << 4);
}

void make_row(const AffineSource& source, int64_t row, uint8_t* out) {
    const int64_t groups = source.columns / source.group_size;
    const uint8_t* codes = source.codes + row * source.columns / 2;
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t index = row * groups + group;
        std::memcpy(out, source.scales + 2 * index, 2);
        out[2] = source.zero_points[index];
        out[3] = 0;
        out += kHeaderBytes;
        for (int64_t k = group * source.group_size; k < (group + 1) * source.group_size; k += kUnitCodes) {
            if (source.order)
                put_ordered_unit(codes, source.order + k, out);
            else
                put_unit(codes + k / 2, out);
            out += kUnitBytes;
        }
    }
}

} // namespace

// records: (num_rows, groups * (4 + group_size / 2)). group_size: a multiple of 32. The caller checks; any alignment.
extern "C" void qlocal_make_affine_records(const AffineSource* source, uint8_t* records) {
    const int64_t row_bytes = source->columns / source->group_size * (kHeaderBytes + source->group_size / 2);
    qlocal::parallel(source->num_rows, kRowsTogether, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            make_row(*source, row, records + row * row_bytes);
    });
}
