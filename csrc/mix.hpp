// Weighted sums of gathered rows (Eq. 7), with uint8 pixels scaled to [0, 1] and the channels normalised afterwards.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "distance.hpp"
#include "parallel.hpp"

namespace dm2 {

template <class In, class Out>
DM2_INLINE void add_row(const In* row, Out coefficient, std::ptrdiff_t width, Out* out) {
    for (std::ptrdiff_t e = 0; e < width; ++e) out[e] += coefficient * static_cast<Out>(row[e]);
}
DM2_CLONES inline void add(const std::uint8_t* row, float c, std::ptrdiff_t width, float* out) {
    add_row(row, c, width, out);
}
DM2_CLONES inline void add(const float* row, float c, std::ptrdiff_t width, float* out) { add_row(row, c, width, out); }
DM2_CLONES inline void add(const double* row, double c, std::ptrdiff_t width, double* out) {
    add_row(row, c, width, out);
}

// out[i] = sum over t of coefficients[i, t] * inputs[indices[i, t]], then / 255 for uint8, then (. - mean) / std of the
// element's channel, which is (element / channel_stride) % channels. mean and std may be null. With last > 0 a row is
// last channels of pixels, one channel after another, and its pixels are written one after another.
template <class In, class Out, class Report>
void mix(const In* inputs, std::ptrdiff_t stride, std::ptrdiff_t width, const std::int64_t* indices,
         const Out* coefficients, std::ptrdiff_t n, std::ptrdiff_t terms, const Out* mean, const Out* std_,
         std::ptrdiff_t channels, std::ptrdiff_t channel_stride, std::ptrdiff_t last, Out* out, int num_threads,
         const Report& report) {
    const auto block = [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        std::vector<Out> planes(static_cast<std::size_t>(last > 0 ? width : 0));
        for (std::ptrdiff_t i = first; i < first + count; ++i) {
            Out* row = last > 0 ? planes.data() : out + i * width;
            std::fill(row, row + width, Out(0));
            for (std::ptrdiff_t t = 0; t < terms; ++t)
                add(inputs + indices[i * terms + t] * stride, coefficients[i * terms + t], width, row);
            if (std::is_same<In, std::uint8_t>::value)
                for (std::ptrdiff_t e = 0; e < width; ++e) row[e] /= Out(255);
            if (mean != nullptr && channel_stride == 1) {
                for (std::ptrdiff_t e = 0; e < width; e += channels)
                    for (std::ptrdiff_t c = 0; c < channels; ++c) row[e + c] = (row[e + c] - mean[c]) / std_[c];
            } else if (mean != nullptr) {
                for (std::ptrdiff_t e = 0, c = 0; e < width; e += channel_stride, c = (c + 1) % channels)
                    for (std::ptrdiff_t s = 0; s < channel_stride; ++s) row[e + s] = (row[e + s] - mean[c]) / std_[c];
            }
            for (std::ptrdiff_t c = 0; c < last; ++c)
                for (std::ptrdiff_t s = 0; s < width / last; ++s) out[i * width + s * last + c] = row[c * (width / last) + s];
        }
    };
    parallel_blocks(n, 8, num_threads, block, report);
}

}  // namespace dm2
