// What files compiled for AMX share: eight full tiles for a while, and tiles turned.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of this thread while it exists. GCC 12 believes that loading reads 8 bytes and would drop the rest of the
// configuration.
class UseTiles {
  public:
    UseTiles() {
        const TileConfig config;
        __asm__ volatile("" ::"m"(config));
        _tile_loadconfig(&config);
    }
    ~UseTiles() { _tile_release(); }
};

// Transpose 16 x 16 elements of 32 bits: four steps, each exchanging halves twice as large between rows.
// In place; a is any sixteen vectors.
inline void transpose(__m512i (&a)[16]) {
    __m512i b[16];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        for (int half = 0; half < 2; ++half) {
            b[i + 8 * half] = _mm512_shuffle_i32x4(a[i + 8 * half], a[i + 4 + 8 * half], 0x88);
            b[i + 4 + 8 * half] = _mm512_shuffle_i32x4(a[i + 8 * half], a[i + 4 + 8 * half], 0xdd);
        }
    }
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
    }
}

} // namespace
