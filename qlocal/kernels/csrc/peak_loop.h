// A loop of independent chains of one instruction, for the files that know instructions.

#pragma once

#include <immintrin.h>

#include "peak.h"

namespace {

// Step(sum) returns the next sum; `operations` is what one step does. Twelve chains hide the latency of each.
template <class Vector, class Step>
inline int64_t run_chains(Vector start, const Step& step, int64_t rounds, int64_t operations) {
    constexpr int chains = 12;
    Vector sums[chains];
    for (Vector& sum : sums)
        sum = start;
    for (int64_t round = 0; round < rounds; ++round)
        for (Vector& sum : sums) {
            sum = step(sum);
            __asm__ volatile("" : "+v"(sum)); // otherwise the compiler does several turns at once
        }
    return rounds * chains * operations;
}

} // namespace
