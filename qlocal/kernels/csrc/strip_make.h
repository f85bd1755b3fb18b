// Making strips of stored rows, once, at load.

#pragma once

#include "matrix.h"

namespace qlocal {

// Bytes of all strips of a weight; 0 for a storage that has none.
int64_t bytes_of_strips(const Matrix& stored);

// Write strips first..last of `stored` (a strip is 16 rows, row_map applied) to `strips` + first * bytes of one. Rows
// beyond the last are zero.
void make_strips(const Matrix& stored, uint8_t* strips, int64_t first, int64_t last);

} // namespace qlocal
