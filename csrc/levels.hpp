// Which code lengths to check, and on which grids: the cheapest chain for a sample of pairs of the data itself.
#pragma once

#include <iterator>
#include <limits>
#include <memory>

#include "scan.hpp"

namespace dm2 {

constexpr std::ptrdiff_t kProbes = 32;     // at most: first rows of a sample, queries whose k-th best distance is known
constexpr std::ptrdiff_t kWideLevels = 3;  // at most, behind the 32-byte codes

// Nanoseconds on one core for one exact distance in the plain loop, and for one of a single pair.
inline double plain_cost(std::ptrdiff_t d) { return 1 + 0.14 * static_cast<double>(d); }
inline double exact_cost(std::ptrdiff_t d) { return 60 + 0.3 * static_cast<double>(d); }

// One width on one grid: which of the (probe, sample row) pairs stay.
struct Trial {
    Grid grid;
    std::vector<char> keeps;
    std::ptrdiff_t kept;

    // l1: what each probe's distance still allows; a pair may also stay for its other row, taken to be like a probe.
    Trial(const Sample& sample, std::ptrdiff_t level, double clip, const std::vector<double>& l1, bool symmetric,
          const Scanner& scanner)
        : grid(sample, level, clip), keeps(l1.size() * static_cast<std::size_t>(sample.n)) {
        const std::ptrdiff_t n = sample.n, bytes = grid.bytes, probes = static_cast<std::ptrdiff_t>(l1.size());
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * bytes));
        std::vector<float> error(static_cast<std::size_t>(n));
        Encoder encoder(sample.folds, sample.widths[0]);
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            encoder.take(sample, level, i);
            error[i] = encoder.write(grid, &codes[i * bytes]);
        }
        std::vector<std::int32_t> sads(static_cast<std::size_t>(n + kSlack));
        std::vector<std::uint16_t> list(sads.size());
        std::vector<Limit> limits(sads.size());
        for (std::ptrdiff_t q = 0; q < probes; ++q) {
            for (std::ptrdiff_t r = 0; r < n; ++r) {
                const double other = l1[(q + r) % probes];
                list[r] = static_cast<std::uint16_t>(r);
                limits[r] = {symmetric ? Bound::reach(other / grid.step, error[r], kMost) : -2 * kMost,
                             Bound::margin(error[r], kMost)};
            }
            const Limit own{Bound::reach(l1[q] / grid.step, error[q], kMost), Bound::margin(error[q], kMost)};
            const std::ptrdiff_t stay =
                scanner.narrow(&codes[q * bytes], codes.data(), bytes, own, limits.data(), list.data(), n, sads.data());
            for (std::ptrdiff_t r = 0; r < stay; ++r) keeps[q * n + list[r]] = list[r] != q;
        }
        kept = std::count(keeps.begin(), keeps.end(), 1);
    }
};

// The best of a few clips for one width.
inline Trial best_clip(const Sample& sample, std::ptrdiff_t level, const std::vector<double>& l1, bool symmetric,
                       const Scanner& scanner, int num_threads) {
    constexpr double kClips[] = {1.0, 0.8, 0.6, 0.5, 0.4};
    constexpr std::ptrdiff_t kTried = sizeof(kClips) / sizeof(double);
    std::unique_ptr<Trial> trials[kTried];
    parallel_blocks(kTried, 1, num_threads, [&](std::ptrdiff_t t, std::ptrdiff_t) {
        trials[t] = std::make_unique<Trial>(sample, level, kClips[t], l1, symmetric, scanner);
    });
    return std::move(**std::min_element(std::begin(trials), std::end(trials), [](const auto& one, const auto& other) {
        return one->kept < other->kept;
    }));
}

// The least nanoseconds for a pair that codes could cost, if none keeps fewer pairs than those of all d dimensions.
inline double least_cost(const Trial& finest, std::ptrdiff_t d, const Scanner& scanner) {
    return scanner.scan_cost +
           static_cast<double>(finest.kept) / static_cast<double>(finest.keeps.size()) * exact_cost(d);
}

// The grids to use, the 32-byte one first, and the expected nanoseconds for a pair.
struct Levels {
    std::vector<Grid> grids;
    double cost;
};

// The cheapest chain: 32-byte codes, then up to three wider ones; a longer chain must gain 5 %. `forced`, if not null,
// names the bytes of the wider ones instead. finest: the trial of all d dimensions.
inline Levels choose_levels(const Sample& sample, Trial finest, const std::vector<double>& l1, bool symmetric,
                            const std::vector<std::ptrdiff_t>* forced, const Scanner& scanner, int num_threads) {
    const std::ptrdiff_t d = sample.widths[0], last = static_cast<std::ptrdiff_t>(sample.widths.size()) - 1;
    std::vector<Trial> trials;  // narrowest first
    for (std::ptrdiff_t level = last; level > 0; --level)
        trials.push_back(best_clip(sample, level, l1, symmetric, scanner, num_threads));
    trials.push_back(std::move(finest));
    const double pairs = static_cast<double>(trials[0].keeps.size());

    unsigned best = 0;
    double least = std::numeric_limits<double>::infinity();
    int shortest = 0;
    for (int length = 0; length <= kWideLevels; ++length)
        for (unsigned chain = 0; chain < 1u << last; ++chain) {
            std::ptrdiff_t bytes = 0, count = 0;
            for (std::ptrdiff_t level = 1; level <= last; ++level)
                if (chain >> (level - 1) & 1) ++count, bytes += trials[level].grid.bytes;
            if (count != length || 2 * bytes > 3 * d + 64) continue;
            std::vector<char> alive = trials[0].keeps;
            double cost = scanner.scan_cost, left = static_cast<double>(trials[0].kept) / pairs;
            for (std::ptrdiff_t level = 1; level <= last; ++level) {
                if (!(chain >> (level - 1) & 1)) continue;
                const Trial& trial = trials[level];
                cost += left * (scanner.narrow_cost + scanner.byte_cost * static_cast<double>(trial.grid.bytes));
                for (std::size_t p = 0; p < alive.size(); ++p) alive[p] &= trial.keeps[p];
                left = static_cast<double>(std::count(alive.begin(), alive.end(), 1)) / pairs;
            }
            cost += left * exact_cost(d);
            if (cost < least * (length > shortest ? 0.95 : 1.0)) least = cost, best = chain, shortest = length;
        }
    if (forced != nullptr) {
        best = 0;
        for (std::ptrdiff_t level = 1; level <= last; ++level)
            if (std::count(forced->begin(), forced->end(), trials[level].grid.bytes)) best |= 1u << (level - 1);
    }
    Levels levels{{trials[0].grid}, least};
    for (std::ptrdiff_t level = 1; level <= last; ++level)
        if (best >> (level - 1) & 1) levels.grids.push_back(trials[level].grid);
    return levels;
}

}  // namespace dm2
