// The combined distance of two rows (Eqs. 4-6), summed in one fixed order on every instruction set.
//
//     combine(sum |a - b|, sum (a - b)^2, w1, w2) = w1 * L1 + w2 * L2
//
// Every result of this library that depends on a distance goes through `sums`: 16 partial sums, dimension t in partial
// sum t % 16, then a fixed tree. Compiled with -ffp-contract=off, so SSE2, AVX2 and a plain compiler give the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

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
    using Bits = std::conditional_t<sizeof(T) == sizeof(std::int32_t), std::int32_t, std::int64_t>;
    typedef T type __attribute__((vector_size(8 * sizeof(T)), aligned(alignof(T)), may_alias));
    typedef Bits bits __attribute__((vector_size(8 * sizeof(T))));
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
    using Bits = typename Half<T>::bits;
    Vector a_low{}, a_high{}, s_low{}, s_high{};

    DM2_INLINE void add(const Vector& low, const Vector& high) {
        constexpr auto kMagnitude = std::numeric_limits<typename Half<T>::Bits>::max();  // all but the sign
        a_low += (Vector)((Bits)low & kMagnitude);
        a_high += (Vector)((Bits)high & kMagnitude);
        s_low += low * low;
        s_high += high * high;
    }
    // 16 dimensions of two rows.
    DM2_INLINE void add(const T* x, const T* y) { add(at(x) - at(y), at(x + 8) - at(y + 8)); }
    DM2_INLINE void add(const T* x, const T* y, T scale) { add(at(x) - at(y) * scale, at(x + 8) - at(y + 8) * scale); }

    DM2_INLINE T l1() const { return tree<T>(a_low, a_high); }
    DM2_INLINE T l2_squared() const { return tree<T>(s_low, s_high); }
    static DM2_INLINE const Vector& at(const T* x) { return *reinterpret_cast<const Vector*>(x); }
};

// L1 and squared L2 of two padded rows.
template <class T>
DM2_INLINE void sums(const T* x, const T* y, std::ptrdiff_t d_padded, T& l1, T& l2_squared) {
    Partial<T> partial;
    for (std::ptrdiff_t t = 0; t < d_padded; t += kLanes) partial.add(x + t, y + t);
    l1 = partial.l1();
    l2_squared = partial.l2_squared();
}

// The distance of a padded row to a row as the caller holds it, times its scale: `sums` of the row that `read` writes.
template <class T>
DM2_INLINE T scaled_distance(const T* x, const T* row, T scale, std::ptrdiff_t d, T w1, T w2) {
    Partial<T> partial;
    std::ptrdiff_t t = 0;
    for (; t + kLanes <= d; t += kLanes) partial.add(x + t, row + t, scale);
    if (t < d) {
        T tail[kLanes] = {};
        std::memcpy(tail, row + t, static_cast<std::size_t>(d - t) * sizeof(T));
        partial.add(x + t, tail, scale);
    }
    return combine(partial.l1(), partial.l2_squared(), w1, w2);
}
DM2_CLONES inline float distance(const float* x, const float* row, float scale, std::ptrdiff_t d, float w1, float w2) {
    return scaled_distance(x, row, scale, d, w1, w2);
}
DM2_CLONES inline double distance(const double* x, const double* row, double scale, std::ptrdiff_t d, double w1,
                                  double w2) {
    return scaled_distance(x, row, scale, d, w1, w2);
}

// Two rows at a time: they share the loads of x, and neither waits for its own additions.
template <class T>
DM2_INLINE void distances_to(const T* x, const T* rows, std::ptrdiff_t n, std::ptrdiff_t d_padded, T w1, T w2, T* out) {
    std::ptrdiff_t j = 0;
    for (; j + 2 <= n; j += 2) {
        const T *row = rows + j * d_padded, *next = row + d_padded;
        Partial<T> partial, of_next;
        for (std::ptrdiff_t t = 0; t < d_padded; t += kLanes) {
            partial.add(x + t, row + t);
            of_next.add(x + t, next + t);
        }
        out[j] = combine(partial.l1(), partial.l2_squared(), w1, w2);
        out[j + 1] = combine(of_next.l1(), of_next.l2_squared(), w1, w2);
    }
    if (j < n) {
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

// 16 bits that stand for a float. Widening is exact, without a subnormal float on the way: a caller may flush these.
struct Float16 {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

DM2_INLINE float as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
DM2_INLINE std::uint32_t as_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
DM2_INLINE float widen(BFloat16 value) { return as_float(static_cast<std::uint32_t>(value.bits) << 16); }
DM2_INLINE float widen(Float16 value) {
    const std::uint32_t magnitude = (value.bits & 0x7FFFu) << 13, smallest = 113u << 23;  // 2^-14
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
    const float subnormal = as_float(magnitude + smallest) - as_float(smallest);
    const std::uint32_t normal = 0u - (magnitude >= 1u << 23);  // all bits; a branch would not vectorise
    return as_float((normal & (magnitude + (112u << 23))) | (~normal & as_bits(subnormal)) | sign);
}
DM2_INLINE float widen(float value) { return value; }
DM2_INLINE double widen(double value) { return value; }

DM2_CLONES inline void widen(const BFloat16* in, std::ptrdiff_t n, float* out) {
    for (std::ptrdiff_t t = 0; t < n; ++t) out[t] = widen(in[t]);
}
DM2_CLONES inline void widen(const Float16* in, std::ptrdiff_t n, float* out) {
    for (std::ptrdiff_t t = 0; t < n; ++t) out[t] = widen(in[t]);
}
template <class T>
void widen(const T* in, std::ptrdiff_t n, T* out) {
    std::memcpy(out, in, static_cast<std::size_t>(n) * sizeof(T));
}

// What the caller's elements are; `same` is T of Rows<T>.
enum class Element { same, float16, bfloat16 };

// Rows as the caller holds them, converted only as they are read. Strides are in elements. A row is multiplied by its
// factors in turn: 1 / norm, and before it a power of two where 1 / norm alone is too large or too small for T.
template <class T>
struct Rows {
    const void* data;
    std::ptrdiff_t n, d, stride;
    const T* scale;  // (n, factors)
    std::ptrdiff_t factors = 1, inner = 1;
    Element element = Element::same;

    bool operator==(const Rows& other) const {
        const auto all = [](const Rows& r) {
            return std::tie(r.data, r.n, r.d, r.stride, r.scale, r.factors, r.inner, r.element);
        };
        return all(*this) == all(other);
    }

    Rows part(std::ptrdiff_t first, std::ptrdiff_t count) const {
        Rows rows = *this;
        rows.data = at(first);
        rows.scale += first * factors;
        rows.n = count;
        return rows;
    }

    // Write rows [first, first + count) times their factors into `out`, zero-padded: what `sums` reads.
    void read(std::ptrdiff_t first, std::ptrdiff_t count, T* out) const {
        const std::ptrdiff_t width = padded(d);
        if (element == Element::same) gather<T>(first, count, out);
        if constexpr (sizeof(T) == sizeof(float)) {
            if (element == Element::float16) gather<Float16>(first, count, out);
            if (element == Element::bfloat16) gather<BFloat16>(first, count, out);
        }
        for (std::ptrdiff_t i = 0; i < count; ++i, out += width) {
            for (std::ptrdiff_t f = 0; f < factors; ++f) {
                const T factor = scale[(first + i) * factors + f];
                for (std::ptrdiff_t t = 0; t < d; ++t) out[t] *= factor;
            }
            std::memset(out + d, 0, static_cast<std::size_t>(width - d) * sizeof(T));
        }
    }

    // Whether `distance` can take the rows as they are.
    bool in_place() const { return element == Element::same && inner == 1 && factors == 1; }
    const T* row(std::ptrdiff_t row) const { return static_cast<const T*>(at(row)); }

    void prefetch(std::ptrdiff_t row) const {
        const char* from = static_cast<const char*>(at(row));
        const std::ptrdiff_t bytes = inner == 1 ? std::min<std::ptrdiff_t>(d * bytes_each(), 4096) : 1;
        for (std::ptrdiff_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b);
    }

private:
    // Columns that are dense. Squares of them are turned in the cache, since rows that are a power of two apart share
    // their places in it: written column by column, each would drive out the others.
    template <class S>
    void turn(const S* from, std::ptrdiff_t count, T* out) const {
        constexpr std::ptrdiff_t kSquare = 32;
        const std::ptrdiff_t width = padded(d);
        T square[kLanes][kSquare];
        for (std::ptrdiff_t start = 0; start < d; start += kLanes)
            for (std::ptrdiff_t first = 0; first < count; first += kSquare) {
                const std::ptrdiff_t columns = std::min(kLanes, d - start), rows = std::min(kSquare, count - first);
                const S* corner = from + first * stride + start * inner;
                for (std::ptrdiff_t t = 0; t < columns; ++t)
                    for (std::ptrdiff_t i = 0; i < rows; ++i) square[t][i] = widen(corner[i * stride + t * inner]);
                for (std::ptrdiff_t i = 0; i < rows; ++i)
                    for (std::ptrdiff_t t = 0; t < columns; ++t) out[(first + i) * width + start + t] = square[t][i];
            }
    }

    std::ptrdiff_t bytes_each() const { return element == Element::same ? sizeof(T) : sizeof(Float16); }
    const void* at(std::ptrdiff_t row) const { return static_cast<const char*>(data) + row * stride * bytes_each(); }

    template <class S>
    void gather(std::ptrdiff_t first, std::ptrdiff_t count, T* out) const {
        const S* from = static_cast<const S*>(at(first));
        const std::ptrdiff_t width = padded(d);
        if (inner == 1)
            for (std::ptrdiff_t i = 0; i < count; ++i) widen(from + i * stride, d, out + i * width);
        else if (std::abs(stride) < std::abs(inner))
            turn(from, count, out);
        else
            for (std::ptrdiff_t i = 0; i < count; ++i)
                for (std::ptrdiff_t t = 0; t < d; ++t) out[i * width + t] = widen(from[i * stride + t * inner]);
    }
};

}  // namespace dm2
