// Activations in the order of a weight's columns (act-order of GPTQ).

#pragma once

#include "scratch.h"

namespace {

// x (columns,), or a copy of it gathered by `order`, good until this thread asks for scratch memory again.
inline const float* in_order(const float* x, int64_t columns, const int64_t* order) {
    if (!order)
        return x;
    auto* gathered = static_cast<float*>(qlocal::thread_scratch(columns * int64_t(sizeof(float))));
    for (int64_t k = 0; k < columns; ++k)
        gathered[k] = x[order[k]];
    return gathered;
}

} // namespace
