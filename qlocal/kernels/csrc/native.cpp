// The plain C interface of the library: what ctypes calls (native.py). Checks that cost nothing are made there.

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "cpu.h"
#include "matrix.h"
#include "thread_pool.h"

namespace {

using qlocal::Matrix;

const qlocal::Kernels& kernels_of(int32_t isa) {
    return isa == qlocal::ISA_AVX512 ? qlocal::avx512_kernels : qlocal::avx2_kernels;
}

// Rows a thread takes at once: enough work to be worth the hand-over, and about eight pieces a thread so that an
// interrupted thread does not hold up the others. A multiple of the rows that take turns in a kernel.
int64_t rows_a_piece(const Matrix& weight, int64_t rows) {
    constexpr int64_t turn = 8, worthwhile_bytes = 32 << 10;
    const int64_t even = rows / (int64_t(qlocal::get_threads()) * 8);
    const int64_t least = worthwhile_bytes / std::max<int64_t>(weight.row_bytes, 1);
    return (std::max(std::max(even, least), int64_t(1)) + turn - 1) / turn * turn;
}

// Tokens a kernel exists for: 1, 2, 4 or 8.
int64_t padded_tokens(int64_t tokens) {
    int64_t padded = 1;
    while (padded < tokens)
        padded *= 2;
    return padded;
}

// Lay activations out as matrix.h says. x: (tokens, columns) float32, rows `stride` apart.
void pack(const float* x, int64_t stride, int64_t tokens, int64_t columns, int64_t lanes, std::vector<float>& packed) {
    const int64_t width = padded_tokens(tokens);
    packed.assign(size_t((columns + 31) / 32 * 32 * width), 0.0f);
    for (int64_t m = 0; m < tokens; ++m)
        for (int64_t k = 0; k < columns; k += lanes)
            std::copy_n(x + m * stride + k, std::min(lanes, columns - k), packed.data() + k * width + m * lanes);
}

struct MatmulLoop {
    const qlocal::Kernels& kernels;
    const Matrix& weight;
    qlocal::Activations x;
    float* out;
    int64_t out_stride, tokens;
};

struct DecodeLoop {
    const qlocal::Kernels& kernels;
    const Matrix& weight;
    float* out;
    int64_t first;
};

} // namespace

extern "C" {

// The version of this interface; native.py refuses another one.
int32_t qlocal_abi() { return 1; }

// Bits of CpuFeature.
uint32_t qlocal_cpu_features() { return qlocal::cpu_features(); }

// Threads of all products from now on, the caller's included.
void qlocal_set_threads(int32_t count) { qlocal::set_threads(count); }

int32_t qlocal_get_threads() { return qlocal::get_threads(); }

// out[m, n] = sum over k of x[m, k] * weight[n, k], products and sums in float32.
//   isa: one that qlocal_cpu_features allows. weight: as matrix.h says. x: (tokens, columns) float32, rows
//   x_stride floats apart, 1 <= tokens <= 8. out: (tokens, num_rows) float32, rows out_stride floats apart; all of
//   it is written. The caller checks; any alignment.
void qlocal_matmul(int32_t isa, const Matrix* weight, const float* x, int64_t x_stride, int64_t tokens, float* out,
                   int64_t out_stride) {
    static thread_local std::vector<float> packed;
    const qlocal::Kernels& kernels = kernels_of(isa);
    pack(x, x_stride, tokens, weight->columns, kernels.lanes, packed);
    MatmulLoop loop{kernels, *weight, {packed.data(), padded_tokens(tokens)}, out, out_stride, tokens};
    const auto body = [](void* context, int64_t first, int64_t last) {
        const auto& l = *static_cast<MatmulLoop*>(context);
        l.kernels.matmul(l.weight, l.x, l.out, l.out_stride, l.tokens, first, last);
    };
    qlocal::parallel_rows(weight->num_rows, rows_a_piece(*weight, weight->num_rows), body, &loop);
}

// Write the values of rows first..last: out (last - first, columns), contiguous float32.
// 0 <= first <= last <= num_rows. The caller checks; any alignment.
void qlocal_decode(int32_t isa, const Matrix* weight, int64_t first, int64_t last, float* out) {
    DecodeLoop loop{kernels_of(isa), *weight, out, first};
    const auto body = [](void* context, int64_t begin, int64_t end) {
        const auto& l = *static_cast<DecodeLoop*>(context);
        l.kernels.decode(l.weight, l.out + begin * l.weight.columns, l.first + begin, l.first + end);
    };
    qlocal::parallel_rows(last - first, rows_a_piece(*weight, last - first), body, &loop);
}

} // extern "C"
