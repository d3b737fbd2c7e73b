// k nearest neighbours: the engine where a sample of the data says that it pays, all distances elsewhere.
#pragma once

#include <cfenv>
#include <optional>
#include <random>

#include "engine.hpp"

namespace dm2 {

// Filters count on gradual underflow, which a caller may have switched off; threads inherit the setting.
class DefaultArithmetic {
public:
    DefaultArithmetic() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&saved_); }
    DefaultArithmetic(const DefaultArithmetic&) = delete;
    DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

private:
    std::fenv_t saved_;
};

// Which path to take; the results are the same.
struct Choice {
    bool plain = false;                                 // the plain loop
    std::optional<std::vector<std::ptrdiff_t>> levels;  // bytes of the codes behind the 32-byte ones; empty: choose
    const Scanner* scanner;
};

template <class T>
struct Problem {
    Rows<T> queries;
    const std::int64_t* query_ids;
    Rows<T> rows;
    const std::int64_t* row_ids;
    T w1, w2;

    // The queries are the rows: each pair serves both.
    bool symmetric() const { return queries == rows && query_ids == row_ids; }
};

// The numbers of the rows of a sample, each among n.
class SampledRows {
public:
    std::ptrdiff_t next(std::ptrdiff_t n) { return static_cast<std::ptrdiff_t>(random_() % static_cast<std::uint64_t>(n)); }

private:
    std::mt19937_64 random_{0};
};

// A random sample of the rows behind `probes` random queries, and the k-th best distance of these.
template <class T>
struct Probed {
    std::vector<float> rows;
    std::vector<T> distances;

    template <class Report>
    // best: what is held already, or no queries at all.
    Probed(const Problem<T>& problem, const Running<T>& best, std::ptrdiff_t probes, std::ptrdiff_t n, int num_threads,
           const Report& report) {
        const std::ptrdiff_t d = problem.rows.d, width = padded(d), k = best.k;
        SampledRows sampled;
        std::vector<T> x(static_cast<std::size_t>(probes * width)), other(static_cast<std::size_t>(width));
        std::vector<T> held(static_cast<std::size_t>(probes * k), std::numeric_limits<T>::infinity());
        std::vector<std::int64_t> ids(static_cast<std::size_t>(probes));
        std::vector<std::int64_t> held_ids(held.size(), std::numeric_limits<std::int64_t>::max());
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            const Rows<T>& from = i < probes ? problem.queries : problem.rows;
            const std::ptrdiff_t row = sampled.next(from.n);
            T* out = i < probes ? &x[i * width] : other.data();
            from.read(row, 1, out);
            rows.insert(rows.end(), out, out + d);
            if (i >= probes) continue;
            ids[i] = problem.query_ids[row];
            if (best.queries == 0) continue;
            std::copy(best.distances + row * k, best.distances + (row + 1) * k, &held[i * k]);
            std::copy(best.ids + row * k, best.ids + (row + 1) * k, &held_ids[i * k]);
        }
        const std::vector<T> ones(static_cast<std::size_t>(probes), T(1));
        plain_knn<T>({x.data(), probes, d, width, ones.data()}, ids.data(), problem.rows, problem.row_ids,
                     Running<T>{probes, k, held.data(), held_ids.data()}, problem.w1, problem.w2, num_threads, report);
        for (std::ptrdiff_t i = 0; i < probes; ++i) distances.push_back(held[(i + 1) * k - 1]);
    }
};

// Update the running best of the queries with the rows. The result is that of plain_knn, bit for bit, for every choice
// and number of threads. report(part done) is called from the calling thread several times a second; it may throw.
// Returns how many pairs met each check.
template <class T, class Report>
std::vector<Stage> knn(const Problem<T>& problem, const Running<T>& best, const Choice& choice, int num_threads,
         const Report& report) {
    if (problem.queries.n == 0 || problem.rows.n == 0) return {};
    const DefaultArithmetic arithmetic;
    const std::ptrdiff_t q = problem.queries.n, m = problem.rows.n, d = problem.rows.d;
    const bool mutual = problem.symmetric() && !choice.plain;
    const auto all = [&] {
        if (mutual)
            mutual_knn(problem.rows, problem.row_ids, best, problem.w1, problem.w2, num_threads, report);
        else
            plain_knn(problem.queries, problem.query_ids, problem.rows, problem.row_ids, best, problem.w1, problem.w2,
                      num_threads, report);
        return std::vector<Stage>{{0, mutual ? m * (m - 1) / 2 : q * m}};
    };
    const auto quiet = [&](double) { report(0.0); };

    // Nanoseconds: a call, a dimension of a row encoded (on all widths), one of a sample row on all grids tried.
    constexpr double kStart = 1e7, kEncode = 5, kTry = 50;
    const std::ptrdiff_t probes = std::min(q, std::clamp<std::ptrdiff_t>(q / 128, 8, kProbes));
    const std::ptrdiff_t n = std::min<std::ptrdiff_t>({1000, (1 << 22) / d, std::max(m, 2 * kProbes)});
    const double dims = static_cast<double>(d), rows_read = static_cast<double>(q + m), sampled = static_cast<double>(n);
    const double all_time = static_cast<double>(q) * static_cast<double>(m) * plain_cost(d) / (mutual ? 2 : 1);
    const double prepare = kStart + static_cast<double>(probes) * static_cast<double>(m) * plain_cost(d) +
                           dims * (kEncode * rows_read + kTry * sampled) + Sample::fold_cost(n, d) +
                           static_cast<double>(q) * static_cast<double>(best.k + 2) * exact_cost(d);  // first thresholds
    const bool forced = choice.levels.has_value();
    if (choice.plain || n <= kProbes || !Bound::holds(d, problem.w1, problem.w2)) return all();
    if (!forced && all_time < 2 * prepare) return all();

    Probed<T> probed(problem, best, probes, n, num_threads, quiet);
    Sample sample(std::move(probed.rows), n, d);
    const Bound bound = Bound::of(d, problem.w1, problem.w2);
    std::vector<double> l1;
    for (const T distance : probed.distances) l1.push_back(bound.l1(distance));
    const bool symmetric = problem.symmetric();
    const double pairs = static_cast<double>(q) * static_cast<double>(m) / (symmetric ? 2 : 1);
    Trial finest = best_clip(sample, 0, l1, symmetric, *choice.scanner, num_threads);
    if (!forced && prepare + pairs * least_cost(finest, d, *choice.scanner) > all_time) return all();
    sample.fold(num_threads);
    const Levels levels = choose_levels(sample, std::move(finest), l1, symmetric, forced ? &*choice.levels : nullptr,
                                        *choice.scanner, num_threads);
    if (!forced && prepare + pairs * levels.cost > all_time) return all();

    const Side<T> rows(problem.rows, sample.folds, levels.grids, num_threads, quiet);
    std::optional<Side<T>> queries;
    if (!symmetric) queries.emplace(problem.queries, sample.folds, levels.grids, num_threads, quiet);
    Engine<T> engine(queries ? *queries : rows, problem.query_ids, rows, problem.row_ids, levels.grids, bound,
                     problem.w1, problem.w2, best, *choice.scanner);
    engine.run(num_threads, report);
    return engine.stages();
}

}  // namespace dm2
