// The plain C interface of the library: what ctypes calls (native.py). Checks that cost nothing are made there.

#include <algorithm>

#include "cpu.h"
#include "multiply.h"
#include "scratch.h"
#include "strip_make.h"
#include "thread_pool.h"

namespace {

using qlocal::Activations;
using qlocal::Kernels;
using qlocal::Matrix;

struct PackLoop {
    const Kernels& kernels;
    int32_t packing;
    const float* x;
    int64_t x_stride, tokens, columns;
    const int64_t* order;
    void* packed;
};

struct MultiplyLoop {
    const Kernels& kernels;
    const Matrix& weight;
    Activations x;
    float* out;
    int64_t out_stride;
};

struct DecodeLoop {
    const Kernels& kernels;
    const Matrix& weight;
    float* out;
    int64_t first;
};

struct StripLoop {
    const Matrix& stored;
    uint8_t* strips;
};

int64_t rows_a_piece(const Matrix& weight, int64_t rows, int64_t tokens) {
    return qlocal::rows_a_piece(weight, rows, tokens, qlocal::get_threads());
}

} // namespace

extern "C" {

// The version of this interface; native.py refuses another one.
int32_t qlocal_abi() { return 5; }

// Bits of CpuFeature.
uint32_t qlocal_cpu_features() { return qlocal::cpu_features(); }

// Threads of all products from now on, the caller's included.
void qlocal_set_threads(int32_t count) { qlocal::set_threads(count); }

int32_t qlocal_get_threads() { return qlocal::get_threads(); }

// Bytes of a weight as strips; 0 where it has none. stored: as matrix.h says.
int64_t qlocal_bytes_of_strips(const Matrix* stored) { return qlocal::bytes_of_strips(*stored); }

// Write the strips of a weight, on all threads. strips: qlocal_bytes_of_strips bytes, 64-byte aligned.
void qlocal_make_strips(const Matrix* stored, uint8_t* strips) {
    StripLoop loop{*stored, strips};
    const auto body = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<StripLoop*>(context);
        qlocal::make_strips(l.stored, l.strips, first, last);
    };
    qlocal::parallel_rows((stored->num_rows + 15) / 16, 4, body, &loop);
}

// out[m, n] = sum over k of x[m, k] * weight[n, k]: rows as stored in float32, strips as matrix.h says of them.
//   isa: one that qlocal_cpu_features allows. weight: as matrix.h says. x: (tokens, columns) float32, rows
//   x_stride floats apart, tokens >= 1. order: (columns,) or null: column k of the weight is column order[k] of x.
//   out: (tokens, num_rows) float32, rows out_stride floats apart; all of it is written. The caller checks; any
//   alignment.
void qlocal_matmul(int32_t isa, const Matrix* weight, const float* x, int64_t x_stride, int64_t tokens,
                   const int64_t* order, float* out, int64_t out_stride) {
    static thread_local qlocal::AlignedMemory memory;
    const Kernels& kernels = qlocal::kernels_of(isa);
    const int64_t columns = weight->columns;
    const int32_t packing = qlocal::packing_of(kernels, *weight, tokens);
    void* packed = memory.at_least(qlocal::packed_bytes(kernels, packing, tokens, columns));
    PackLoop packs{kernels, packing, x, x_stride, tokens, columns, order, packed};
    const auto pack = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<PackLoop*>(context);
        qlocal::pack(l.kernels, l.packing, l.x, l.x_stride, l.tokens, l.columns, l.order, l.packed, first, last);
    };
    qlocal::parallel_rows(tokens, 16, pack, &packs);
    MultiplyLoop products{kernels, *weight, {packed, tokens, columns, packing}, out, out_stride};
    const auto multiply = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<MultiplyLoop*>(context);
        qlocal::multiply(l.kernels, l.weight, l.x, l.out, l.out_stride, first, last);
    };
    qlocal::parallel_rows(weight->num_rows, rows_a_piece(*weight, weight->num_rows, tokens), multiply, &products);
}

// Write the values of rows first..last of a weight that is not in strips: out (last - first, columns), contiguous
// float32. 0 <= first <= last <= num_rows. The caller checks; any alignment.
void qlocal_decode(int32_t isa, const Matrix* weight, int64_t first, int64_t last, float* out) {
    DecodeLoop loop{qlocal::kernels_of(isa), *weight, out, first};
    const auto body = [](void* context, int64_t begin, int64_t end) {
        const auto& l = *static_cast<DecodeLoop*>(context);
        l.kernels.stored_rows->decode(l.weight, l.out + begin * l.weight.columns, l.first + begin, l.first + end);
    };
    qlocal::parallel_rows(last - first, rows_a_piece(*weight, last - first, 1), body, &loop);
}

} // extern "C"
