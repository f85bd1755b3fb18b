// What the CPU multiplies at most: operations in registers, without any memory. Benchmarks give shares of it.

#pragma once

#include <cstdint>

namespace qlocal {

// Multiply and add in registers for `rounds` turns; returns the operations done, two a product. int8: products of 8-bit
// integers added in 32 bits. bf16: of bfloat16 added in float32, or of float32 where there is no such instruction.
struct Peaks {
    int64_t (*int8)(int64_t rounds);
    int64_t (*bf16)(int64_t rounds);
};

extern const Peaks avx2_peaks;
extern const Peaks avx512_peaks;
extern const Peaks avx512_vnni_peaks;
extern const Peaks amx_peaks;

} // namespace qlocal
