// Strips: sixteen rows beside each other, the layout of quantized weights in memory (made once at load by
// strip_make.cpp). So a vector holds one thing of all rows: no sums across lanes, a scale is loaded and not spread,
// and a strip is one stream from its first byte to its last.
//
// A strip is a number of records in the order of the columns; a record is its scales, padded to 64 bytes, and then
// its units of 32 columns. The codes of a unit are unsigned. Where `lines` of 64 bytes are mentioned, byte 4 r + c of a
// line belongs to row r; line j stands for columns 4 j + c of the unit, j = 0..7, which is what a VNNI instruction
// and a row of an AMX tile multiply at once.
//
//   4 bits  4 lines: line j in the low nibbles of line j, line j + 4 in the high ones
//   1 bit   1 line:  line j in bit j
//   2 bits  2 lines: line 4 i + b in bits 2 b and 2 b + 1 of line i
//   8 bits  8 lines
//
// Codes of 5, 6 and 3 bits are 4 + 1, 4 + 2 and 2 + 1. Scales, each for rows 0..15:
//
//   Q4_0 Q5_0 Q8_0 IQ4_NL   2 units   float16 of each unit
//   Q4_1 Q5_1               1 unit    float16 scales, float16 shifts
//   AFFINE_*                a group   scales as stored, zero points (bytes)
//   Q4_K Q5_K               8 units   d, dmin, then the 12 bytes of scales and mins, byte by byte
//   Q6_K Q3_K               8 units   d, then a signed byte for every 16 columns
//   Q2_K                    8 units   d, dmin, then a byte of two nibbles for every 16 columns
//   IQ4_XS                  8 units   d, then a signed byte for every unit

#pragma once

#include "matrix.h"

namespace {

constexpr int64_t kStripRows = 16;
constexpr int64_t kUnitColumns = 32;
constexpr int64_t kLineBytes = 64;

// units: of a record. scale_bytes: what stands before them. unit_bytes: codes of a unit.
struct StripLayout {
    int64_t units, scale_bytes, unit_bytes;
    constexpr int64_t record_bytes() const { return scale_bytes + units * unit_bytes; }
};

// All zeros for a storage that has no strips.
constexpr StripLayout strip_layout(int32_t storage, int64_t group_size) {
    switch (storage) {
    case qlocal::Q4_0:
    case qlocal::IQ4_NL:
        return {2, 64, 256};
    case qlocal::Q5_0:
        return {2, 64, 320};
    case qlocal::Q8_0:
        return {2, 64, 512};
    case qlocal::Q4_1:
        return {1, 64, 256};
    case qlocal::Q5_1:
        return {1, 64, 320};
    case qlocal::Q4_K:
        return {8, 256, 256};
    case qlocal::Q5_K:
        return {8, 256, 320};
    case qlocal::Q6_K:
        return {8, 320, 384};
    case qlocal::Q3_K:
        return {8, 320, 192};
    case qlocal::Q2_K:
        return {8, 320, 128};
    case qlocal::IQ4_XS:
        return {8, 192, 256};
    case qlocal::AFFINE_F16:
    case qlocal::AFFINE_BF16:
        return {group_size / kUnitColumns, 64, 256};
    default:
        return {0, 0, 0};
    }
}

inline int64_t strip_records(const qlocal::Matrix& weight) {
    const int64_t units = strip_layout(weight.storage, weight.group_size).units;
    return (weight.columns / kUnitColumns + units - 1) / units;
}

inline int64_t strip_bytes(const qlocal::Matrix& weight) {
    return strip_records(weight) * strip_layout(weight.storage, weight.group_size).record_bytes();
}

} // namespace
