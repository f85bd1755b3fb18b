// The smaller of two numbers, for files compiled for one instruction set. Not the standard library's: an out-of-line
// copy of its templates made for that set could be the one that the whole library calls.

#pragma once

#include <cstdint>

namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

} // namespace
