// The step's operations for AVX2, FMA and F16C.

#include "attention.h"
#include "floats_avx2.h"

const qlocal::StepOps qlocal::avx2_step_ops = step_ops<Avx2Floats, attend<Avx2Floats>>;
