#include "cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

bool bit(uint32_t word, int index) { return word >> index & 1; }

// Which register states the operating system saves; 0 when it says nothing.
uint64_t saved_states(const Registers& basic) {
    constexpr int osxsave = 27;
    if (!bit(basic.ecx, osxsave))
        return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

// Linux gives a process the registers of AMX when it asks, all its threads at once.
bool may_use_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

} // namespace

uint32_t qlocal::cpu_features() {
    constexpr uint64_t avx_state = 0x6, avx512_state = 0xe6, amx_state = 0x60000;
    const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
    const uint64_t saved = saved_states(basic);
    uint32_t features = 0;
    const bool fma = bit(basic.ecx, 12), f16c = bit(basic.ecx, 29), avx2 = bit(extended.ebx, 5);
    if ((saved & avx_state) != avx_state || !fma || !f16c || !avx2)
        return features;
    features |= CPU_AVX2;
    const bool f = bit(extended.ebx, 16), dq = bit(extended.ebx, 17);
    const bool bw = bit(extended.ebx, 30), vl = bit(extended.ebx, 31);
    if ((saved & avx512_state) != avx512_state || !f || !dq || !bw || !vl)
        return features;
    features |= CPU_AVX512;
    if (bit(extended.ecx, 11))
        features |= CPU_AVX512_VNNI;
    if (bit(more.eax, 5))
        features |= CPU_AVX512_BF16;
    const bool tiles = (saved & amx_state) == amx_state && bit(extended.edx, 24) && may_use_tiles();
    if (tiles && bit(extended.edx, 22))
        features |= CPU_AMX_BF16;
    if (tiles && bit(extended.edx, 25))
        features |= CPU_AMX_INT8;
    return features;
}
