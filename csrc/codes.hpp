// Short codes of rows: signed sums over groups of correlated dimensions, rounded to bytes, with each row's own error.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bound.hpp"
#include "distance.hpp"
#include "parallel.hpp"

namespace dm2 {

constexpr std::ptrdiff_t kCode = 32;  // bytes of the shortest code; all codes are multiples of it

inline std::ptrdiff_t code_bytes(std::ptrdiff_t width) { return (width + kCode - 1) / kCode * kCode; }

// Widths of the group sums: d itself, then 32 * 2^i below d, down to 32.
inline std::vector<std::ptrdiff_t> sum_widths(std::ptrdiff_t d) {
    std::vector<std::ptrdiff_t> widths;
    for (std::ptrdiff_t width = kCode; width < d; width *= 2) widths.insert(widths.begin(), width);
    widths.insert(widths.begin(), d);
    return widths;
}

// From one width to the next: group j is first[j] + sign[j] * second[j], where sign 0 leaves first[j] alone.
struct Fold {
    std::vector<std::int32_t> first, second;
    std::vector<float> sign;

    std::ptrdiff_t width() const { return static_cast<std::ptrdiff_t>(first.size()); }

    void apply(const float* in, float* out) const {
        for (std::size_t j = 0; j < first.size(); ++j) out[j] = in[first[j]] + sign[j] * in[second[j]];
    }
};

// out[t] += a * in[t]
DM2_CLONES inline void add_scaled(const float* in, float a, std::ptrdiff_t n, float* out) {
    for (std::ptrdiff_t t = 0; t < n; ++t) out[t] += a * in[t];
}

// What is lost where a column of this variance is paired with each of n others: for normal differences the expected |G|
// of a pair falls short of the sum of both by deviation + deviation - sqrt(variance + variance + 2 |covariance|).
DM2_CLONES inline void pair_losses(float variance, const float* variances, const float* covariances, std::ptrdiff_t n,
                                   float* losses) {
    const float deviation = std::sqrt(variance);
    for (std::ptrdiff_t u = 0; u < n; ++u) {
        const float both = variance + variances[u] + 2 * std::abs(covariances[u]);
        losses[u] = deviation + std::sqrt(variances[u]) - std::sqrt(both);
    }
}

// Two columns and what their pair loses in one number, ordered by (loss, t, u); NaN comes last.
inline std::uint64_t edge(float loss, std::ptrdiff_t t, std::ptrdiff_t u) {
    const std::uint32_t bits = as_bits(loss == loss ? loss : std::numeric_limits<float>::max());
    const std::uint64_t rising = bits >> 31 ? ~bits : bits | 1u << 31;
    return rising << 32 | static_cast<std::uint64_t>(t) << 16 | static_cast<std::uint64_t>(u);
}

// Pair the columns of x (n, width) into `pairs` pairs that lose least. Greedy. The columns are called start, start + 1...
inline Fold pair_columns(const float* x, std::ptrdiff_t n, std::ptrdiff_t stride, std::ptrdiff_t width,
                         std::ptrdiff_t pairs, std::int32_t start, int num_threads) {
    const std::size_t w = static_cast<std::size_t>(width);
    std::vector<float> mean(w, 0.0f), centred(static_cast<std::size_t>(n) * w), covariance(w * w, 0.0f), variance(w);
    for (std::ptrdiff_t i = 0; i < n; ++i) add_scaled(x + i * stride, 1.0f / static_cast<float>(n), width, mean.data());
    for (std::ptrdiff_t i = 0; i < n; ++i)
        for (std::ptrdiff_t t = 0; t < width; ++t) centred[i * width + t] = x[i * stride + t] - mean[t];
    parallel_blocks(width, 8, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        for (std::ptrdiff_t i = 0; i < n; ++i)
            for (std::ptrdiff_t t = first; t < first + count; ++t)
                add_scaled(&centred[i * width + first], centred[i * width + t], width - first,
                           &covariance[t * width + first]);
    });
    for (std::ptrdiff_t t = 0; t < width; ++t) variance[t] = covariance[t * width + t];
    std::vector<std::uint64_t> edges(w * (w - 1) / 2);
    parallel_blocks(width, 64, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        std::vector<float> losses(w);
        for (std::ptrdiff_t t = first; t < first + count; ++t) {
            pair_losses(variance[t], &variance[t], &covariance[t * width + t], width - t, losses.data());
            std::uint64_t* out = edges.data() + t * (2 * width - t - 1) / 2;  // behind the edges of the columns before
            for (std::ptrdiff_t u = t + 1; u < width; ++u) *out++ = edge(losses[u - t], t, u);
        }
    });

    // The least edges first, in parts: most of the others have lost a column by then.
    Fold fold;
    std::vector<char> taken(w, 0);
    const auto column = [](std::uint64_t e, int shift) { return static_cast<std::int32_t>(e >> shift & 0xFFFF); };
    for (auto first = edges.begin(), last = edges.end(); first != last && pairs > 0;) {
        const auto end = first + std::min(last - first, std::max(8 * width, (last - first) / 16));
        if (end != last) std::nth_element(first, end, last);
        std::sort(first, end);
        for (; first != end && pairs > 0; ++first) {
            const std::int32_t t = column(*first, 16), u = column(*first, 0);
            if (taken[t] || taken[u]) continue;
            taken[t] = taken[u] = 1;
            fold.first.push_back(start + t);
            fold.second.push_back(start + u);
            fold.sign.push_back(covariance[t * width + u] < 0 ? -1.0f : 1.0f);
            --pairs;
        }
        last = std::remove_if(first, last, [&](std::uint64_t e) { return taken[column(e, 16)] || taken[column(e, 0)]; });
    }
    for (std::int32_t t = 0; t < width; ++t) {
        if (taken[t]) continue;
        fold.first.push_back(start + t);
        fold.second.push_back(start + t);
        fold.sign.push_back(0.0f);
    }
    return fold;
}

// Sums of a sample of rows at every width, and the folds between them. Before fold() only the rows.
struct Sample {
    std::ptrdiff_t n;
    std::vector<std::ptrdiff_t> widths;
    std::vector<std::vector<float>> sums;  // [f]: (n, widths[f])
    std::vector<Fold> folds;               // [f]: from widths[f] to widths[f + 1]

    Sample(std::vector<float> rows, std::ptrdiff_t n_rows, std::ptrdiff_t d) : n(n_rows), widths(sum_widths(d)) {
        sums.push_back(std::move(rows));
    }

    void fold(int num_threads) {
        for (std::size_t f = 0; f + 1 < widths.size(); ++f) {
            const std::ptrdiff_t from = widths[f], to = widths[f + 1], count = parts(to);
            std::vector<Fold> part(static_cast<std::size_t>(count));
            parallel_blocks(count, 1, num_threads, [&](std::ptrdiff_t p, std::ptrdiff_t) {
                const std::ptrdiff_t start = from * p / count, width = from * (p + 1) / count - start;
                const std::ptrdiff_t groups = to * (p + 1) / count - to * p / count;
                part[p] = pair_columns(sums[f].data() + start, n, from, width, width - groups,
                                       static_cast<std::int32_t>(start), count > 1 ? 1 : num_threads);
            });
            Fold fold;
            for (const Fold& one : part) {
                fold.first.insert(fold.first.end(), one.first.begin(), one.first.end());
                fold.second.insert(fold.second.end(), one.second.begin(), one.second.end());
                fold.sign.insert(fold.sign.end(), one.sign.begin(), one.sign.end());
            }
            std::vector<float> folded(static_cast<std::size_t>(n * to));
            for (std::ptrdiff_t i = 0; i < n; ++i) fold.apply(&sums[f][i * from], &folded[i * to]);
            folds.push_back(std::move(fold));
            sums.push_back(std::move(folded));
        }
    }

    // Nanoseconds on one core that fold() takes: for each two columns that are compared, and for each product of them.
    static double fold_cost(std::ptrdiff_t n, std::ptrdiff_t d) {
        constexpr double kPair = 10, kProduct = 0.1;
        const std::vector<std::ptrdiff_t> widths = sum_widths(d);
        double pairs = 0;
        for (std::size_t f = 0; f + 1 < widths.size(); ++f)
            pairs += static_cast<double>(widths[f]) * static_cast<double>(widths[f]) / (2.0 * parts(widths[f + 1]));
        return pairs * (kPair + kProduct * static_cast<double>(n));
    }

private:
    // Only columns of one part are compared with each other: 1024 groups, of about 2048 columns.
    static std::ptrdiff_t parts(std::ptrdiff_t groups) { return (groups + 1023) / 1024; }
};

// Bytes for the sums of one width: byte t is (sum - offset[t]) / step, clipped to [0, 255] and rounded.
struct Grid {
    std::ptrdiff_t depth, bytes;  // folds before this width
    float step;
    std::vector<float> offset;

    Grid(std::ptrdiff_t depth_, float step_, std::vector<float> offset_)
        : depth(depth_), bytes(static_cast<std::ptrdiff_t>(offset_.size())), step(step_), offset(std::move(offset_)) {}

    // `clip` of the widest range in the sample makes 255 steps; a group that is wider is clipped about its mean.
    Grid(const Sample& sample, std::ptrdiff_t level, double clip)
        : depth(level), bytes(code_bytes(sample.widths[level])), offset(static_cast<std::size_t>(bytes), 0.0f) {
        const std::ptrdiff_t width = sample.widths[level];
        const float* rows = sample.sums[level].data();
        std::vector<float> low(rows, rows + width), high(low);
        std::vector<double> mean(static_cast<std::size_t>(width), 0.0);
        for (std::ptrdiff_t i = 0; i < sample.n; ++i)
            for (std::ptrdiff_t t = 0; t < width; ++t) {
                const float g = rows[i * width + t];
                low[t] = std::min(low[t], g);
                high[t] = std::max(high[t], g);
                mean[t] += g / static_cast<double>(sample.n);
            }
        double range = 0, largest = 0;
        for (std::ptrdiff_t t = 0; t < width; ++t) {
            range = std::max(range, static_cast<double>(high[t]) - low[t]);
            largest = std::max({largest, std::abs(static_cast<double>(low[t])), std::abs(static_cast<double>(high[t]))});
        }
        const double least = std::max(largest * std::ldexp(1.0, -19), std::ldexp(1.0, -60));
        step = static_cast<float>(std::max(clip * range / 255, least));
        for (std::ptrdiff_t t = 0; t < width; ++t) {
            const double window = 255.0 * step, last = std::max<double>(low[t], high[t] - window);
            offset[t] = static_cast<float>(std::min(std::max<double>(low[t], mean[t] - window / 2), last));
        }
    }
};

// Write the code of the sums g; return the sum of |unit value - byte|. units, rounded: scratch.
DM2_CLONES inline float quantise(const float* g, const float* offset, float per_step, std::ptrdiff_t bytes,
                                 std::uint8_t* code, float* units, float* rounded) {
    for (std::ptrdiff_t t = 0; t < bytes; ++t) {
        float v = (g[t] - offset[t]) * per_step;
        v = v > 0.0f ? v : 0.0f;
        v = v < 255.0f ? v : 255.0f;
        const int q = static_cast<int>(v + 0.5f);
        units[t] = v;
        rounded[t] = static_cast<float>(q);
        code[t] = static_cast<std::uint8_t>(q);
    }
    float l1, l2_squared;
    sums(units, rounded, bytes, l1, l2_squared);
    return l1;
}

DM2_CLONES inline float norm(const float* x, const float* zeros, std::ptrdiff_t d_padded) {
    float l1, l2_squared;
    sums(x, zeros, d_padded, l1, l2_squared);
    return l1;
}

// The codes of one row after another.
class Encoder {
public:
    explicit Encoder(const std::vector<Fold>& folds, std::ptrdiff_t d)
        : folds_(folds), sums_(1), norm_(0) {
        sums_[0].resize(static_cast<std::size_t>(code_bytes(d)));
        units_ = rounded_ = zeros_ = sums_[0];
        for (const Fold& fold : folds) sums_.emplace_back(static_cast<std::size_t>(code_bytes(fold.width())));
    }

    // Take the sums of a row (d values) at every width.
    template <class T>
    void read(const T* row, std::ptrdiff_t d) {
        std::transform(row, row + d, sums_[0].begin(), [](T value) { return static_cast<float>(value); });
        norm_ = norm(sums_[0].data(), zeros_.data(), static_cast<std::ptrdiff_t>(zeros_.size()));
        for (std::size_t f = 0; f < folds_.size(); ++f) folds_[f].apply(sums_[f].data(), sums_[f + 1].data());
    }

    // Take a row of the sample, for codes of one level.
    void take(const Sample& sample, std::ptrdiff_t level, std::ptrdiff_t row) {
        const std::ptrdiff_t d = sample.widths[0], width = sample.widths[level];
        std::copy_n(&sample.sums[0][row * d], d, sums_[0].begin());
        norm_ = norm(sums_[0].data(), zeros_.data(), static_cast<std::ptrdiff_t>(zeros_.size()));
        std::copy_n(&sample.sums[level][row * width], width, sums_[level].begin());
    }

    // Write the code on a grid, grid.bytes long, and return its error E in steps.
    float write(const Grid& grid, std::uint8_t* code) {
        const float residual = quantise(sums_[grid.depth].data(), grid.offset.data(), 1 / grid.step, grid.bytes, code,
                                        units_.data(), rounded_.data());
        return static_cast<float>(Bound::error(residual, grid.bytes, grid.depth, norm_, grid.step));
    }

private:
    const std::vector<Fold>& folds_;
    std::vector<std::vector<float>> sums_;
    float norm_;
    std::vector<float> units_, rounded_, zeros_;
};

}  // namespace dm2
