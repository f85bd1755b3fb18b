// Error feedback for AVX2 with FMA and F16C: eight rows at once.

#include "lanes_avx2.h"

#include "feedback_rows.h"

const qlocal::GroupedRows<qlocal::FeedbackJob> qlocal::avx2_feedback = {Avx2Lanes::lanes, solve_feedback<Avx2Lanes>};
