// The step's operations for AVX-512 F, BW, DQ and VL.

#include "attention.h"
#include "floats_avx512.h"

const qlocal::StepOps qlocal::avx512_step_ops = step_ops<Avx512Floats, attend<Avx512Floats>>;
