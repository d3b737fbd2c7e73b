// The squared L2 distance of each row to the nearest of some points, by direct differences that do not cancel.
#pragma once

#include "distance.hpp"
#include "parallel.hpp"

namespace dm2 {

template <class T>
struct Squares {
    using P = Partial<T>;
    typename P::Vector low{}, high{};

    DM2_INLINE void add(const T* x, const T* y) {
        const typename P::Vector u = P::at(x) - P::at(y), v = P::at(x + 8) - P::at(y + 8);
        low += u * u;
        high += v * v;
    }
};

// The squared L2 distance, or anything that is not below the limit once a part of the sum has reached it: rounded sums
// of squares never fall. The order is that of `sums`.
template <class T>
DM2_INLINE T squared_below(const T* x, const T* y, std::ptrdiff_t d, T limit) {
    Squares<T> sum;
    std::ptrdiff_t t = 0;
    for (; t + 4 * kLanes <= d; t += 4 * kLanes) {
        sum.add(x + t, y + t);
        sum.add(x + t + kLanes, y + t + kLanes);
        sum.add(x + t + 2 * kLanes, y + t + 2 * kLanes);
        sum.add(x + t + 3 * kLanes, y + t + 3 * kLanes);
        const T part = tree<T>(sum.low, sum.high);
        if (part >= limit) return part;
    }
    for (; t + kLanes <= d; t += kLanes) sum.add(x + t, y + t);
    if (t < d) {
        T a[kLanes] = {}, b[kLanes] = {};
        std::memcpy(a, x + t, static_cast<std::size_t>(d - t) * sizeof(T));
        std::memcpy(b, y + t, static_cast<std::size_t>(d - t) * sizeof(T));
        sum.add(a, b);
    }
    return tree<T>(sum.low, sum.high);
}

template <class T>
DM2_INLINE void lower_block(const T* rows, std::ptrdiff_t n, std::ptrdiff_t stride, const T* points,
                            std::ptrdiff_t count, std::ptrdiff_t point_stride, std::ptrdiff_t d, T* distances) {
    for (std::ptrdiff_t j = 0; j < count; ++j)
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            if (!(distances[i] > 0)) continue;
            const T found = squared_below(rows + i * stride, points + j * point_stride, d, distances[i]);
            if (found < distances[i]) distances[i] = found;
        }
}
DM2_CLONES inline void lower(const float* rows, std::ptrdiff_t n, std::ptrdiff_t stride, const float* points,
                             std::ptrdiff_t count, std::ptrdiff_t point_stride, std::ptrdiff_t d, float* distances) {
    lower_block(rows, n, stride, points, count, point_stride, d, distances);
}
DM2_CLONES inline void lower(const double* rows, std::ptrdiff_t n, std::ptrdiff_t stride, const double* points,
                             std::ptrdiff_t count, std::ptrdiff_t point_stride, std::ptrdiff_t d, double* distances) {
    lower_block(rows, n, stride, points, count, point_stride, d, distances);
}

// distances[i] = min(distances[i], the squared distance of row i to each point). Rows at 0 or below are not read. The
// points come in parts, so that report(part done) is called several times a second; it may throw.
template <class T, class Report>
void lower_to_nearest(const T* rows, std::ptrdiff_t n, std::ptrdiff_t stride, const T* points, std::ptrdiff_t count,
                      std::ptrdiff_t point_stride, std::ptrdiff_t d, T* distances, int num_threads,
                      const Report& report) {
    constexpr std::ptrdiff_t kRows = 128;
    const std::ptrdiff_t step = std::max<std::ptrdiff_t>(1, (1 << 21) / std::max<std::ptrdiff_t>(d, 1));
    for (std::ptrdiff_t start = 0; start < count; start += step) {
        const std::ptrdiff_t points_here = std::min(step, count - start);
        parallel_blocks(
            n, kRows, num_threads,
            [&](std::ptrdiff_t first, std::ptrdiff_t rows_here) {
                lower(rows + first * stride, rows_here, stride, points + start * point_stride, points_here,
                      point_stride, d, distances + first);
            },
            [&](double done) { report((start + done * points_here) / static_cast<double>(count)); });
    }
}

}  // namespace dm2
