// Quantizing for AVX2: eight rows at once.

#include "lanes_avx2.h"

#include "quantize_rows.h"

const qlocal::GroupedRows<qlocal::QuantizeJob> qlocal::avx2_quantizer = {Avx2Lanes::lanes, quantize<Avx2Lanes>};
