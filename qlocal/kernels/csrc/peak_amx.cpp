// Peaks of AMX: four tiles of sums, as many as a product keeps.

#include "peak.h"
#include "use_tiles.h"

namespace {

void clear_tiles() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
}

int64_t int8(int64_t rounds) {
    const UseTiles tiles;
    clear_tiles();
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    return rounds * 4 * 2 * 16 * 16 * 64;
}

int64_t bf16(int64_t rounds) {
    const UseTiles tiles;
    clear_tiles();
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    return rounds * 4 * 2 * 16 * 16 * 32;
}

} // namespace

const qlocal::Peaks qlocal::amx_peaks = {int8, bf16};
