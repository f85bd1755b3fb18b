// Compiled for AVX2, which every CPU with kernels has.

#include "strip_make.h"

#include "blocks.h"
#include "scratch.h"
#include "strip_layout.h"

namespace {

// The codes of a unit, in lines as they are multiplied: word 16 j + r has columns 4 j .. 4 j + 3 of row r.
using UnitCodes = uint32_t[8 * kStripRows];

// --- Codes of a block as unsigned numbers

QLOCAL_INLINE __m256i unsigned_codes(__m256i codes, int offset) { return _mm256_add_epi8(codes, bytes_of(offset)); }
template <class Levels> QLOCAL_INLINE __m256i unsigned_codes(const SplitNibbles<Levels>& nibbles, int) {
    return nibbles16(nibbles.bytes);
}
template <int Shift> QLOCAL_INLINE __m256i unsigned_codes(const NibbleRun<Shift>& nibbles, int) {
    return nibbles.codes();
}

// Sink of blocks.h: puts the codes of one row into their words.
struct PutCodes {
    UnitCodes* units;
    int row, offset;
    template <class C, class S> QLOCAL_INLINE void operator()(int64_t unit, const C& codes, const S&) const {
        uint32_t words[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), unsigned_codes(codes, offset));
        for (int j = 0; j < 8; ++j)
            units[unit][j * kStripRows + row] = words[j];
    }
};

// --- Codes to bits; see strip_layout.h.

constexpr uint32_t every_byte(uint32_t value) { return value * 0x01010101u; }

void put_nibbles(const UnitCodes& codes, uint32_t* out) {
    constexpr int high = 4 * kStripRows;
    for (int i = 0; i < high; ++i)
        out[i] = (codes[i] & every_byte(15)) | (codes[i + high] & every_byte(15)) << 4;
}

// Bits From .. From + Bits - 1 of the codes; 8 / Bits lines of codes become one.
template <int From, int Bits> void put_bits(const UnitCodes& codes, uint32_t* out) {
    constexpr int lines = 8 / Bits;
    constexpr uint32_t mask = every_byte((1 << Bits) - 1);
    for (int first = 0; first < 8; first += lines, out += kStripRows)
        for (int r = 0; r < kStripRows; ++r) {
            uint32_t bits = 0;
            for (int b = 0; b < lines; ++b)
                bits |= (codes[(first + b) * kStripRows + r] >> From & mask) << (Bits * b);
            out[r] = bits;
        }
}

struct As4Bits {
    static void put(const UnitCodes& codes, uint32_t* out) { put_nibbles(codes, out); }
};
struct As5Bits {
    static void put(const UnitCodes& codes, uint32_t* out) {
        put_nibbles(codes, out);
        put_bits<4, 1>(codes, out + 4 * kStripRows);
    }
};
struct As6Bits {
    static void put(const UnitCodes& codes, uint32_t* out) {
        put_nibbles(codes, out);
        put_bits<4, 2>(codes, out + 4 * kStripRows);
    }
};
struct As8Bits {
    static void put(const UnitCodes& codes, uint32_t* out) { std::memcpy(out, codes, sizeof(UnitCodes)); }
};
struct As2Bits {
    static void put(const UnitCodes& codes, uint32_t* out) { put_bits<0, 2>(codes, out); }
};
struct As3Bits {
    static void put(const UnitCodes& codes, uint32_t* out) {
        put_bits<0, 2>(codes, out);
        put_bits<2, 1>(codes, out + 2 * kStripRows);
    }
};

// --- Scales of a block: `put(block, in_record, row, scales)`, in_record counting the blocks of a record.

void put_16(uint8_t* scales, int64_t index, int row, const uint8_t* value) {
    std::memcpy(scales + (index * kStripRows + row) * 2, value, 2);
}

// Bytes that stand behind `halves` values of 16 bits.
void put_8(uint8_t* scales, int64_t halves, int64_t index, int row, int value) {
    scales[halves * 2 * kStripRows + index * kStripRows + row] = uint8_t(value);
}

// One float16 at the start of the block.
struct UnitScale {
    static void put(const uint8_t* b, int64_t in_record, int row, uint8_t* scales) {
        put_16(scales, in_record, row, b);
    }
};
struct UnitScaleShift {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        put_16(scales, 0, row, b);
        put_16(scales, 1, row, b + 2);
    }
};
struct SixBitPairs {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        UnitScaleShift::put(b, 0, row, scales);
        for (int i = 0; i < 12; ++i)
            put_8(scales, 2, i, row, b[4 + i]);
    }
};
struct NibblePairs {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        UnitScaleShift::put(b + 80, 0, row, scales);
        for (int i = 0; i < 16; ++i)
            put_8(scales, 2, i, row, b[i]);
    }
};
struct Q6_KScales {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        put_16(scales, 0, row, b + 208);
        for (int i = 0; i < 16; ++i)
            put_8(scales, 1, i, row, b[192 + i]);
    }
};
struct Q3_KScales {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        put_16(scales, 0, row, b + 108);
        for (int i = 0; i < 16; ++i) {
            const int low = b[96 + i % 8] >> (i < 8 ? 0 : 4) & 15, high = b[104 + i % 4] >> (i / 4 * 2) & 3;
            put_8(scales, 1, i, row, (low | high << 4) - 32);
        }
    }
};
struct IQ4_XSScales {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        put_16(scales, 0, row, b);
        const uint32_t high = load<uint16_t>(b + 2), low = load<uint32_t>(b + 4);
        for (int i = 0; i < 8; ++i)
            put_8(scales, 1, i, row, int((low >> 4 * i & 15) | (high >> 2 * i & 3) << 4) - 32);
    }
};
struct GroupScale {
    static void put(const uint8_t* b, int64_t, int row, uint8_t* scales) {
        put_16(scales, 0, row, b);
        put_8(scales, 1, 0, row, b[2]);
    }
};

// --- Strips

// Offset: what makes the codes of blocks.h unsigned where they are not taken as nibbles.
template <class Blocks, class Scales, class Bits, int Offset> struct Maker {
    Blocks blocks;

    // Where row r of the strip starts; null beyond the last row.
    struct Rows {
        const uint8_t* start[kStripRows];
    };

    void make_record(const Rows& rows, int64_t first_block, int64_t end_block, const StripLayout& layout,
                     UnitCodes* units, uint8_t* out) const {
        std::memset(units, 0, size_t(layout.units) * sizeof(UnitCodes));
        std::memset(out, 0, size_t(layout.scale_bytes));
        for (int row = 0; row < kStripRows && rows.start[row]; ++row)
            for (int64_t block = first_block; block < end_block; ++block) {
                const uint8_t* bytes = rows.start[row] + block * blocks.bytes;
                Scales::put(bytes, block - first_block, row, out);
                blocks.decode(bytes, PutCodes{units + (block - first_block) * blocks.units, row, Offset});
            }
        for (int64_t unit = 0; unit < layout.units; ++unit)
            Bits::put(units[unit], reinterpret_cast<uint32_t*>(out + layout.scale_bytes + unit * layout.unit_bytes));
    }

    void make_strip(const Matrix& stored, int64_t strip, uint8_t* out) const {
        const StripLayout layout = strip_layout(stored.storage, stored.group_size);
        auto* units = static_cast<UnitCodes*>(qlocal::thread_scratch(layout.units * int64_t(sizeof(UnitCodes))));
        Rows rows{};
        for (int64_t row = strip * kStripRows, r = 0; r < kStripRows && row < stored.num_rows; ++r, ++row)
            rows.start[r] = stored.data + (stored.row_map ? stored.row_map[row] : row) * stored.row_bytes;
        const int64_t num_blocks = stored.columns / (blocks.units * kUnitColumns), step = layout.units / blocks.units;
        for (int64_t block = 0; block < num_blocks; block += step, out += layout.record_bytes())
            make_record(rows, block, block + step < num_blocks ? block + step : num_blocks, layout, units, out);
    }
};

// Call `use` with the maker of a storage.
template <class Use> void with_maker(const Matrix& stored, const Use& use) {
    switch (stored.storage) {
    case qlocal::Q4_0:
        return use(Maker<Q4_0Blocks, UnitScale, As4Bits, 0>{});
    case qlocal::Q4_1:
        return use(Maker<Q4_1Blocks, UnitScaleShift, As4Bits, 0>{});
    case qlocal::Q5_0:
        return use(Maker<Q5_0Blocks, UnitScale, As5Bits, 16>{});
    case qlocal::Q5_1:
        return use(Maker<Q5_1Blocks, UnitScaleShift, As5Bits, 0>{});
    case qlocal::Q8_0:
        return use(Maker<Q8_0Blocks, UnitScale, As8Bits, 128>{});
    case qlocal::Q2_K:
        return use(Maker<Q2_KBlocks, NibblePairs, As2Bits, 0>{});
    case qlocal::Q3_K:
        return use(Maker<Q3_KBlocks, Q3_KScales, As3Bits, 4>{});
    case qlocal::Q4_K:
        return use(Maker<Q4_KBlocks, SixBitPairs, As4Bits, 0>{});
    case qlocal::Q5_K:
        return use(Maker<Q5_KBlocks, SixBitPairs, As5Bits, 0>{});
    case qlocal::Q6_K:
        return use(Maker<Q6_KBlocks, Q6_KScales, As6Bits, 32>{});
    case qlocal::IQ4_NL:
        return use(Maker<IQ4_NLBlocks, UnitScale, As4Bits, 0>{});
    case qlocal::IQ4_XS:
        return use(Maker<IQ4_XSBlocks, IQ4_XSScales, As4Bits, 0>{});
    case qlocal::AFFINE_F16: // the scale is copied as it is stored
    case qlocal::AFFINE_BF16:
        return use(Maker<AffineBlocks<false>, GroupScale, As4Bits, 0>{AffineBlocks<false>(stored)});
    }
}

} // namespace

int64_t qlocal::bytes_of_strips(const Matrix& stored) {
    if (strip_layout(stored.storage, stored.group_size).units == 0)
        return 0;
    return (stored.num_rows + kStripRows - 1) / kStripRows * strip_bytes(stored);
}

void qlocal::make_strips(const Matrix& stored, uint8_t* strips, int64_t first, int64_t last) {
    with_maker(stored, [&](const auto& maker) {
        for (int64_t strip = first; strip < last; ++strip)
            maker.make_strip(stored, strip, strips + strip * strip_bytes(stored));
    });
}
