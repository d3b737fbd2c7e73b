// Uncertainty of logits (Eqs. 9-10) without writing the softmax.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.hpp"

namespace dm2 {

enum class Kind { least_confidence, entropy, margin };

// With e_c = exp(z_c - max z) and S = sum e_c, in double:
//     least confidence  1 - max softmax   = (S - 1) / S, the 1 left out of the sum, so that nothing cancels
//     entropy           -sum p log p      = log S - sum e_c (z_c - max z) / S
//     margin            -(p_1 - p_2)      = -(1 - e_2) / S
template <class T>
double uncertainty(const T* logits, std::ptrdiff_t classes, Kind kind) {
    const std::ptrdiff_t top = std::max_element(logits, logits + classes) - logits;
    double others = 0, moment = 0, second = -std::numeric_limits<double>::infinity();
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        if (c == top) continue;
        const double z = static_cast<double>(logits[c]) - static_cast<double>(logits[top]);
        const double e = std::exp(z);
        others += e;
        if (e > 0) moment += e * z;
        second = std::max(second, z);
    }
    if (kind == Kind::least_confidence) return others / (1 + others);
    if (kind == Kind::entropy) return std::log1p(others) - moment / (1 + others);
    return std::expm1(second) / (1 + others);
}

template <class T, class Report>
void uncertainty(const T* logits, std::ptrdiff_t n, std::ptrdiff_t classes, std::ptrdiff_t stride, Kind kind, T* out,
                 int num_threads, const Report& report) {
    const auto block = [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        for (std::ptrdiff_t i = first; i < first + count; ++i)
            out[i] = static_cast<T>(uncertainty(logits + i * stride, classes, kind));
    };
    parallel_blocks(n, 1024, num_threads, block, report);
}

}  // namespace dm2
