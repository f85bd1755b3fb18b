// Error feedback for AVX-512 F, BW, DQ and VL: sixteen rows at once.

#include "lanes_avx512.h"

#include "feedback_rows.h"

const qlocal::GroupedRows<qlocal::FeedbackJob> qlocal::avx512_feedback = {Avx512Lanes::lanes,
                                                                          solve_feedback<Avx512Lanes>};
