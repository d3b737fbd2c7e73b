// The combined distance of two rows (Eqs. 4-6), summed in one fixed order on every instruction set.
//
//     combine(sum |a - b|, sum (a - b)^2, w1, w2) = w1 * L1 + w2 * L2
//
// Every result of this library that depends on a distance goes through `sums`: 16 partial sums, dimension t in partial
// sum t % 16, then a fixed tree. Compiled with -ffp-contract=off, so SSE2, AVX2 and a plain compiler give the same bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

// ThreadSanitizer cannot start a program whose functions are resolved at load time.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define DM2_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define DM2_CLONES
#endif

#define DM2_INLINE inline __attribute__((always_inline))

namespace dm2 {

constexpr std::ptrdiff_t kLanes = 16;  // partial sums; rows are padded with zeros to a multiple of it

inline std::ptrdiff_t padded(std::ptrdiff_t d) { return (d + kLanes - 1) / kLanes * kLanes; }

// Half of the partial sums: the widest vector that GCC keeps in registers on AVX2 for float.
template <class T>
struct Half {
    typedef T type __attribute__((vector_size(8 * sizeof(T)), aligned(alignof(T)), may_alias));
};

// combine() is the one place in C++ that says how L1 and the squared L2 become a distance.
template <class T>
DM2_INLINE T combine(T l1, T l2_squared, T w1, T w2) {
    return w1 * l1 + w2 * std::sqrt(l2_squared);
}

template <class T>
DM2_INLINE T tree(const typename Half<T>::type& low, const typename Half<T>::type& high) {
    const typename Half<T>::type s = low + high;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// The 16 partial sums of L1 and of the squared L2.
template <class T>
struct Partial {
    using Vector = typename Half<T>::type;
    Vector a_low{}, a_high{}, s_low{}, s_high{};

    DM2_INLINE void add(const Vector& low, const Vector& high) {
        a_low += low < 0 ? -low : low;
        a_high += high < 0 ? -high : high;
        s_low += low * low;
        s_high += high * high;
    }
    static DM2_INLINE const Vector& at(const T* x) { return *reinterpret_cast<const Vector*>(x); }
};

// L1 and squared L2 of two padded rows.
template <class T>
DM2_INLINE void sums(const T* x, const T* y, std::ptrdiff_t d_padded, T& l1, T& l2_squared) {
    using P = Partial<T>;
    P partial;
    for (std::ptrdiff_t t = 0; t < d_padded; t += kLanes)
        partial.add(P::at(x + t) - P::at(y + t), P::at(x + t + 8) - P::at(y + t + 8));
    l1 = tree<T>(partial.a_low, partial.a_high);
    l2_squared = tree<T>(partial.s_low, partial.s_high);
}

// The distance of a padded row to a row as the caller holds it, times its scale: `sums` of the row that `read` writes.
template <class T>
DM2_INLINE T scaled_distance(const T* x, const T* row, T scale, std::ptrdiff_t d, T w1, T w2) {
    using P = Partial<T>;
    P partial;
    std::ptrdiff_t t = 0;
    for (; t + kLanes <= d; t += kLanes)
        partial.add(P::at(x + t) - P::at(row + t) * scale, P::at(x + t + 8) - P::at(row + t + 8) * scale);
    if (t < d) {
        T tail[kLanes] = {};
        std::memcpy(tail, row + t, static_cast<std::size_t>(d - t) * sizeof(T));
        partial.add(P::at(x + t) - P::at(tail) * scale, P::at(x + t + 8) - P::at(tail + 8) * scale);
    }
    return combine(tree<T>(partial.a_low, partial.a_high), tree<T>(partial.s_low, partial.s_high), w1, w2);
}
DM2_CLONES inline float distance(const float* x, const float* row, float scale, std::ptrdiff_t d, float w1, float w2) {
    return scaled_distance(x, row, scale, d, w1, w2);
}
DM2_CLONES inline double distance(const double* x, const double* row, double scale, std::ptrdiff_t d, double w1,
                                  double w2) {
    return scaled_distance(x, row, scale, d, w1, w2);
}

template <class T>
DM2_INLINE void distances_to(const T* x, const T* rows, std::ptrdiff_t n, std::ptrdiff_t d_padded, T w1, T w2, T* out) {
    for (std::ptrdiff_t j = 0; j < n; ++j) {
        T l1, l2_squared;
        sums(x, rows + j * d_padded, d_padded, l1, l2_squared);
        out[j] = combine(l1, l2_squared, w1, w2);
    }
}

// Distances of one padded row to n padded rows. Overloads, not a template: a template cannot be cloned per instruction set.
DM2_CLONES inline void distances(const float* x, const float* rows, std::ptrdiff_t n, std::ptrdiff_t d_padded, float w1,
                                 float w2, float* out) {
    distances_to(x, rows, n, d_padded, w1, w2, out);
}
DM2_CLONES inline void distances(const double* x, const double* rows, std::ptrdiff_t n, std::ptrdiff_t d_padded,
                                 double w1, double w2, double* out) {
    distances_to(x, rows, n, d_padded, w1, w2, out);
}

// Rows as the caller holds them: dense inside a row, any stride between rows, one factor (1 / norm) per row.
template <class T>
struct Rows {
    const T* data;
    std::ptrdiff_t n, d, stride;
    const T* scale;

    Rows part(std::ptrdiff_t first, std::ptrdiff_t count) const {
        return {data + first * stride, count, d, stride, scale + first};
    }

    // Copy rows [first, first + count) times their scale into `out`, zero-padded: what `sums` reads.
    void read(std::ptrdiff_t first, std::ptrdiff_t count, T* out) const {
        const std::ptrdiff_t width = padded(d);
        for (std::ptrdiff_t i = 0; i < count; ++i, out += width) {
            const T* row = data + (first + i) * stride;
            for (std::ptrdiff_t t = 0; t < d; ++t) out[t] = row[t] * scale[first + i];
            std::memset(out + d, 0, static_cast<std::size_t>(width - d) * sizeof(T));
        }
    }
};

}  // namespace dm2
