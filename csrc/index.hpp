// Rows prepared once: their codes in cells, for approximate graphs and for exact queries.
#pragma once

#include "cells.hpp"
#include "search.hpp"

namespace dm2 {

// How the rows of a graph are encoded: all folds, and the grids of 32 bytes and of all dimensions.
struct Encoding {
    std::vector<Fold> folds;
    std::vector<Grid> grids;

    static constexpr std::ptrdiff_t kTypical = 10;  // the neighbour whose distance the grids are made for

    // Rows of the sample that it is made from, of which the first few are probes.
    static std::ptrdiff_t sampled(std::ptrdiff_t d) { return std::min<std::ptrdiff_t>(1000, (1 << 22) / d + 2 * kProbes); }
    static std::ptrdiff_t probes(std::ptrdiff_t n) { return std::min<std::ptrdiff_t>(kProbes / 2, n); }
    static std::ptrdiff_t typical(std::ptrdiff_t n) { return std::min(kTypical, std::max<std::ptrdiff_t>(1, n - 1)); }

    // l1: what the distance of its neighbour allows each probe.
    Encoding(std::vector<float> rows, std::ptrdiff_t n, std::ptrdiff_t d, const std::vector<double>& l1,
             const Scanner& scanner, int num_threads) {
        Sample sample(std::move(rows), n, d);
        Trial finest = best_clip(sample, 0, l1, true, scanner, num_threads);
        const Grid full = finest.grid;
        sample.fold(num_threads);
        const std::vector<std::ptrdiff_t> none_behind;
        grids = choose_levels(sample, std::move(finest), l1, true, &none_behind, scanner, num_threads).grids;
        grids.push_back(full);
        folds = std::move(sample.folds);
    }
};

template <class T>
struct Index {
    Rows<T> rows;
    T w1, w2;
    const Scanner& scanner;
    std::vector<Fold> folds;
    std::vector<Grid> grids;  // 32 bytes, then all dimensions
    Bound bound;
    std::unique_ptr<Side<T>> side;
    std::unique_ptr<Cells> cells;

    template <class Report>
    Index(const Rows<T>& rows_, const std::int64_t* ids, T w1_, T w2_, const Scanner& scanner_, int num_threads, const Report& report)
        : rows(rows_), w1(w1_), w2(w2_), scanner(scanner_), bound(Bound::of(rows_.d, w1_, w2_)) {
        const DefaultArithmetic arithmetic;
        prepare(ids, num_threads, report);
        side = std::make_unique<Side<T>>(rows, folds, grids, num_threads, report);
        make_cells(num_threads, report);
    }

    // Of codes alone, (n, 32) and (n, bytes), on all of an `Encoding`: nothing can be searched, but once the rows are in
    // cells, which need the memory that the codes took, a graph can be made.
    template <class Report>
    Index(std::ptrdiff_t n, std::ptrdiff_t d, const std::uint8_t* near, const std::uint8_t* wide, std::ptrdiff_t bytes,
          const Scanner& scanner_, int num_threads, const Report& report)
        : rows{nullptr, n, d, d, nullptr}, w1(0), w2(0), scanner(scanner_), bound(Bound::of(d, T(0), T(0))),
          bytes_(bytes) {
        side = std::make_unique<Side<T>>(rows, near, wide, bytes, num_threads, report);
    }

    template <class Report>
    void make_cells(int num_threads, const Report& report) {
        cells = std::make_unique<Cells>(*side, bytes_, num_threads, report);
    }

    std::ptrdiff_t bytes() const { return bytes_; }
    const std::uint8_t* code(std::ptrdiff_t place) const { return &side->wide[0][place * bytes()]; }

    // Update the running best of some queries, which need not be rows, as `knn` does. A row with a negative id is left out.
    template <class Report>
    void search(const Rows<T>& queries, const std::int64_t* query_ids, const std::int64_t* row_ids,
                const Running<T>& best, int num_threads, const Report& report) const {
        if (queries.n == 0) return;
        const DefaultArithmetic arithmetic;
        const auto quiet = [&](double) { report(0.0); };
        const Side<T> asked(queries, folds, grids, num_threads, quiet);
        Engine<T>(asked, query_ids, *side, row_ids, grids, bound, w1, w2, best, scanner).run(num_threads, report);
    }

private:
    std::ptrdiff_t bytes_ = 0;

    template <class Report>
    void prepare(const std::int64_t* ids, int num_threads, const Report& report) {
        const std::ptrdiff_t n = Encoding::sampled(rows.d);
        Probed<T> probed({rows, ids, rows, ids, w1, w2}, {0, Encoding::typical(rows.n), nullptr, nullptr},
                         Encoding::probes(rows.n), n, num_threads, report);
        std::vector<double> l1;
        for (const T distance : probed.distances) l1.push_back(bound.l1(distance));
        Encoding encoding(std::move(probed.rows), n, rows.d, l1, scanner, num_threads);
        grids = std::move(encoding.grids);
        folds = std::move(encoding.folds);
        bytes_ = grids[1].bytes;
    }
};

}  // namespace dm2
