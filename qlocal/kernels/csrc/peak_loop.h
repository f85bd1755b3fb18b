// A loop of independent chains of one instruction, for the files that know instructions.

#pragma once

#include <immintrin.h>

#include "peak.h"

namespace {

// Step(sum) returns the next sum; `operations` is what one step does. Twelve chains hide the latency of each; they have
// names, since GCC would keep an array of them in memory.
template <class Vector, class Step>
inline int64_t run_chains(Vector start, const Step& step, int64_t rounds, int64_t operations) {
    const auto turn = [&](Vector& sum) {
        sum = step(sum);
        __asm__ volatile("" : "+v"(sum)); // otherwise the compiler does several turns at once
    };
    Vector a = start, b = start, c = start, d = start, e = start, f = start;
    Vector g = start, h = start, i = start, j = start, k = start, l = start;
    for (int64_t round = 0; round < rounds; ++round) {
        turn(a), turn(b), turn(c), turn(d), turn(e), turn(f);
        turn(g), turn(h), turn(i), turn(j), turn(k), turn(l);
    }
    return rounds * 12 * operations;
}

} // namespace
