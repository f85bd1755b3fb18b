// What this CPU, and the operating system on it, can run.

#pragma once

#include <cstdint>

namespace qlocal {

// Bits of cpu_features; native.py has the same.
enum CpuFeature : uint32_t {
    CPU_AVX2 = 1,        // with FMA and F16C
    CPU_AVX512 = 2,      // F, BW, DQ and VL
    CPU_AVX512_VNNI = 4, //
    CPU_AVX512_BF16 = 8, //
    CPU_AMX_BF16 = 16,   //
    CPU_AMX_INT8 = 32,   //
};

// Numbers of the instruction sets on the C interface, each with all of those before it; native.py has the same.
enum Isa : int32_t { ISA_AVX2 = 1, ISA_AVX512 = 2, ISA_AVX512_VNNI = 3, ISA_AMX = 4 };

// The instruction sets that may be used: by CPUID, and only where the system saves their registers (XCR0).
uint32_t cpu_features();

} // namespace qlocal
