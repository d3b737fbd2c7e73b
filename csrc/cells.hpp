// Cells of rows that are near each other: the leaves of the 2-means tree, whose rows move to the nearest centre.
#pragma once

#include "engine.hpp"

namespace dm2 {

constexpr std::ptrdiff_t kCell = 128;  // rows of a cell, on average; never more than twice as many

// SADs of a code with those of some rows anywhere in memory.
DM2_CLONES inline void sads_to(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes,
                               const std::uint32_t* rows, std::ptrdiff_t n, std::int32_t* out) {
    for (std::ptrdiff_t r = 0; r < n; ++r) {
        const std::uint8_t* other = codes + static_cast<std::ptrdiff_t>(rows[r]) * bytes;
        std::int32_t sum = 0;
        for (std::ptrdiff_t t = 0; t < bytes; ++t) sum += std::abs(code[t] - other[t]);
        out[r] = sum;
    }
}

// The n-th least of some values, or the largest of fewer. Halving the range counts without branches to guess.
DM2_CLONES inline std::int32_t nth_least(const std::int32_t* values, std::ptrdiff_t count, std::ptrdiff_t n) {
    std::int32_t low = std::numeric_limits<std::int32_t>::max(), high = 0;
    for (std::ptrdiff_t i = 0; i < count; ++i) low = std::min(low, values[i]), high = std::max(high, values[i]);
    while (low < high) {
        const std::int32_t middle = low + (high - low) / 2;
        std::int32_t reached = 0;
        for (std::ptrdiff_t i = 0; i < count; ++i) reached += values[i] <= middle;
        if (reached < n)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// The first n numbers with the least (key, number), in order.
inline void least(std::vector<std::uint64_t>& keys, const std::int32_t* of, std::ptrdiff_t count, std::ptrdiff_t n) {
    keys.clear();
    const std::int32_t most = n < count ? nth_least(of, count, n) : std::numeric_limits<std::int32_t>::max();
    for (std::ptrdiff_t i = 0; i < count; ++i)
        if (of[i] <= most) keys.push_back(static_cast<std::uint64_t>(of[i]) << 32 | static_cast<std::uint64_t>(i));
    std::sort(keys.begin(), keys.end());
    if (n < count) keys.resize(static_cast<std::size_t>(n));
}

// The n least of some values that are not negative; of equal ones, the first. They are asked for in their order.
class Least {
public:
    Least(const std::int32_t* values, std::ptrdiff_t count, std::ptrdiff_t n) {
        if (n == 0) return;
        last_ = nth_least(values, count, n);
        equal_ = n;
        for (std::ptrdiff_t i = 0; i < count; ++i) equal_ -= values[i] < last_;
    }
    bool has(std::int32_t value) { return value < last_ || (value == last_ && equal_-- > 0); }

private:
    std::int32_t last_ = -1;
    std::ptrdiff_t equal_ = 0;  // of the last value
};

// Cell c has the places from first[c] to first[c + 1].
class Cells {
public:
    std::vector<std::ptrdiff_t> first;
    std::vector<std::uint8_t> centres;  // the mean code of each

    std::ptrdiff_t size() const { return static_cast<std::ptrdiff_t>(first.size()) - 1; }
    std::ptrdiff_t bytes() const { return bytes_; }

    // Put the rows in cells, and the places of the side in their order. A cell of many equal rows is cut.
    template <class T, class Report>
    Cells(Side<T>& side, std::ptrdiff_t bytes, int num_threads, const Report& report) : bytes_(bytes) {
        const std::ptrdiff_t n = side.rows.n;
        const std::uint8_t* codes = side.wide[0].data();
        std::vector<std::ptrdiff_t> order(static_cast<std::size_t>(n));
        for (std::ptrdiff_t p = 0; p < n; ++p) order[p] = p;
        for (std::ptrdiff_t p = 0; p < n; p += kCell) first.push_back(p);
        first.push_back(n);
        for (int move = 0; move < kMoves; ++move) {
            find_centres(side, order, num_threads);
            move_rows(codes, order, num_threads, report);
        }
        std::vector<std::ptrdiff_t> cut;
        for (std::ptrdiff_t cell = 0; cell < size(); ++cell)
            for (std::ptrdiff_t p = first[cell]; p < first[cell + 1]; p += 2 * kCell) cut.push_back(p);
        cut.push_back(n);
        first.swap(cut);
        find_centres(side, order, num_threads);
        side.reorder(order);
    }

    // The cells around one, the nearest centres first, itself before all. Where there are many, only those with the
    // nearest 32-byte centres are looked at, some times as many.
    std::vector<std::uint32_t> around(std::ptrdiff_t cell, std::ptrdiff_t most) const {
        const std::ptrdiff_t groups = (size() + kGroup - 1) / kGroup;
        std::vector<std::int16_t> near(static_cast<std::size_t>(groups * kGroup));
        std::uint8_t code[kCode];
        get_code(near_.data(), cell, code);
        scanner(Isa::automatic)->near(code, near_.data(), groups, near.data());
        std::vector<std::int32_t> sads(near.begin(), near.begin() + size());
        std::vector<std::uint64_t> keys;
        least(keys, sads.data(), size(), kLookedAt * most);
        std::vector<std::uint32_t> some(keys.begin(), keys.end()), all;  // the lower halves
        std::sort(some.begin(), some.end());
        sads_to(&centres[cell * bytes_], centres.data(), bytes_, some.data(), static_cast<std::ptrdiff_t>(some.size()),
                sads.data());
        for (std::size_t c = 0; c < some.size(); ++c) sads[c] = static_cast<std::ptrdiff_t>(some[c]) == cell ? 0 : sads[c] + 1;
        least(keys, sads.data(), static_cast<std::ptrdiff_t>(some.size()), most);
        for (const std::uint64_t key : keys) all.push_back(some[static_cast<std::uint32_t>(key)]);
        return all;
    }

    // How many cells are nearer to the code of one row than that of another row, by their places.
    std::ptrdiff_t rank(const std::uint8_t* codes, std::ptrdiff_t place, std::ptrdiff_t other) const {
        const std::ptrdiff_t cell = std::upper_bound(first.begin(), first.end(), other) - first.begin() - 1;
        const auto to = [&](std::ptrdiff_t c) { return generic::sad(codes + place * bytes_, &centres[c * bytes_], bytes_); };
        const std::int32_t limit = to(cell);
        std::ptrdiff_t nearer = 0;
        for (std::ptrdiff_t c = 0; c < size(); ++c) nearer += to(c) < limit;
        return nearer;
    }

private:
    static constexpr int kMoves = 2;
    static constexpr std::ptrdiff_t kTo = 32;  // centres that a row may move to
    static constexpr std::ptrdiff_t kLookedAt = 4;

    template <class T>
    void find_centres(const Side<T>& side, const std::vector<std::ptrdiff_t>& order, int num_threads) {
        const std::uint8_t* codes = side.wide[0].data();
        centres.assign(static_cast<std::size_t>(size() * bytes_), 0);
        near_.assign(static_cast<std::size_t>((size() + kGroup - 1) / kGroup * kGroupBytes), 0);
        parallel_blocks(size(), kGroup, num_threads, [&](std::ptrdiff_t start, std::ptrdiff_t count) {
            std::vector<std::uint8_t> centre(static_cast<std::size_t>(bytes_ + kCode)), code(kCode);
            for (std::ptrdiff_t cell = start; cell < start + count; ++cell) {
                const std::ptrdiff_t n = first[cell + 1] - first[cell];
                std::vector<std::int32_t> sums(centre.size(), 0);
                for (std::ptrdiff_t p = first[cell]; p < first[cell + 1]; ++p) {
                    get_code(side.near.data(), order[p], code.data());
                    for (std::ptrdiff_t t = 0; t < bytes_; ++t) sums[t] += codes[order[p] * bytes_ + t];
                    for (std::ptrdiff_t t = 0; t < kCode; ++t) sums[bytes_ + t] += code[t];
                }
                for (std::size_t t = 0; t < sums.size(); ++t)
                    centre[t] = static_cast<std::uint8_t>(n > 0 ? (sums[t] + n / 2) / n : 0);
                std::copy_n(centre.begin(), bytes_, centres.begin() + cell * bytes_);
                put_code(near_.data(), cell, &centre[bytes_]);
            }
        });
    }

    // Each row goes to the nearest of the centres around its own; of equal ones, to that of the nearer cell.
    template <class Report>
    void move_rows(const std::uint8_t* codes, std::vector<std::ptrdiff_t>& order, int num_threads, const Report& report) {
        std::vector<std::uint32_t> cell_of(order.size());  // by place
        parallel_blocks(
            size(), 4, num_threads,
            [&](std::ptrdiff_t start, std::ptrdiff_t count) {
                for (std::ptrdiff_t cell = start; cell < start + count; ++cell) {
                    const std::vector<std::uint32_t> to = around(cell, kTo);
                    const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(to.size());
                    for (std::ptrdiff_t p = first[cell]; p < first[cell + 1]; ++p) {
                        std::int32_t sads[kTo];
                        sads_to(codes + order[p] * bytes_, centres.data(), bytes_, to.data(), n, sads);
                        cell_of[p] = to[std::min_element(sads, sads + n) - sads];
                    }
                }
            },
            report);
        std::vector<std::ptrdiff_t> next(first.size(), 0), moved(order.size());
        for (const std::uint32_t cell : cell_of) ++next[cell + 1];
        for (std::size_t c = 1; c < next.size(); ++c) next[c] += next[c - 1];
        first = next;
        for (std::size_t p = 0; p < order.size(); ++p) moved[next[cell_of[p]]++] = order[p];
        order.swap(moved);
    }

    std::vector<std::uint8_t> near_;  // the mean 32-byte code of each, in groups
    std::ptrdiff_t bytes_;
};

}  // namespace dm2
