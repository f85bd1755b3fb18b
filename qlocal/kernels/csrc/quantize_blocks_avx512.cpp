// Quantizing for AVX-512 F, BW, DQ and VL: sixteen rows at once.

#include "lanes_avx512.h"

#include "quantize_rows.h"

const qlocal::GroupedRows<qlocal::QuantizeJob> qlocal::avx512_quantizer = {Avx512Lanes::lanes, quantize<Avx512Lanes>};
