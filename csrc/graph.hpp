// Approximate neighbours of all rows: for each row the rows with the least SAD of codes among those it meets.
#pragma once

#include "index.hpp"

namespace dm2 {

// The lists are the K least (SAD, place) of all pairs that were met, and which pairs are met does not depend on threads:
// each step adds pairs that follow from the codes and from the lists as they were before it.
template <class T>
class Graph {
public:
    // ids: a row with a negative one has left. slots: K.
    Graph(const Index<T>& index, const std::int64_t* ids, std::ptrdiff_t slots)
        : index_(index), ids_(ids), slots_(slots), lists_(static_cast<std::size_t>(index.rows.n * slots), kEmpty) {
        find_gone();
    }

    // The same lists without the rows that have left since.
    Graph(const Graph& other, const std::int64_t* ids)
        : index_(other.index_), ids_(ids), slots_(other.slots_), lists_(other.lists_) {
        find_gone();
        for (std::ptrdiff_t p = 0; p < index_.rows.n; ++p) {
            std::uint64_t* list = list_of(p);
            const bool left = gone(p);
            std::uint64_t* end = std::remove_if(list, list + slots_, [&](std::uint64_t entry) {
                return left || entry == kEmpty || gone(place_of(entry));
            });
            std::fill(end, list + slots_, kEmpty);
        }
    }

    // Each row meets the rows of its nearest cells: from the one of rank `from` to that before `to`.
    template <class Report>
    void probe(std::ptrdiff_t from, std::ptrdiff_t to, int num_threads, const Report& report) {
        const double ratio = near_ratio();
        parallel_blocks(
            index_.cells->size(), 1, num_threads,
            [&](std::ptrdiff_t cell, std::ptrdiff_t) { probe_cell(cell, from, to, ratio); }, report);
        reverse(num_threads);
    }

    // Each row meets the neighbours of its neighbours, where one of the two steps is new since the last join.
    template <class Report>
    void join(int num_threads, const Report& report) {
        const std::ptrdiff_t n = index_.rows.n;
        std::vector<std::uint32_t> frozen(lists_.size());
        for (std::size_t e = 0; e < lists_.size(); ++e) {
            frozen[e] = static_cast<std::uint32_t>(lists_[e]);
            lists_[e] |= kOld;
        }
        parallel_blocks(
            n, 256, num_threads,
            [&](std::ptrdiff_t first, std::ptrdiff_t count) {
                std::vector<std::uint32_t> met;
                std::vector<std::int32_t> sads;
                for (std::ptrdiff_t p = first; p < first + count; ++p) {
                    for (std::ptrdiff_t r = 0; p + 1 < n && r < slots_ && frozen[(p + 1) * slots_ + r] != kNobody; ++r)
                        __builtin_prefetch(&frozen[static_cast<std::ptrdiff_t>(frozen[(p + 1) * slots_ + r] >> 1) * slots_]);
                    if (!gone(p)) join_row(p, frozen, met, sads);
                }
            },
            report);
        reverse(num_threads);
    }

    // The k nearest by (distance, id) of the lists of some rows, given by their places, to the lines `to` of the result;
    // what a list lacks is empty. In the order of places, rows share their neighbours, and these are in the cache.
    template <class Report>
    void nearest(const std::int64_t* places, const std::int64_t* to, std::ptrdiff_t n, std::ptrdiff_t k, T* distances,
                 std::int64_t* ids, int num_threads, const Report& report) const {
        const DefaultArithmetic arithmetic;
        parallel_blocks(
            n, 256, num_threads,
            [&](std::ptrdiff_t first, std::ptrdiff_t count) {
                std::vector<T> x(static_cast<std::size_t>(padded(index_.rows.d))), other(x.size());
                std::vector<std::pair<T, std::int64_t>> found;
                for (std::ptrdiff_t i = first; i < first + count; ++i) {
                    if (i + 1 < first + count) prefetch(places[i + 1]);
                    measure(places[i], x.data(), other.data(), found);
                    found.resize(static_cast<std::size_t>(k), {std::numeric_limits<T>::infinity(),
                                                               std::numeric_limits<std::int64_t>::max()});
                    for (std::ptrdiff_t r = 0; r < k; ++r)
                        std::tie(distances[to[i] * k + r], ids[to[i] * k + r]) = found[r];
                }
            },
            report);
    }

private:
    // An entry of a list: SAD, place, and whether a join has seen it; places are below 2^31.
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0}, kOld = 1;
    static constexpr std::uint32_t kNobody = ~std::uint32_t{0};
    static std::uint64_t entry_of(std::int32_t sad, std::ptrdiff_t place) {
        return static_cast<std::uint64_t>(sad) << 32 | static_cast<std::uint64_t>(place) << 1;
    }
    static std::ptrdiff_t place_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry) >> 1; }
    static std::int32_t sad_of(std::uint64_t entry) { return static_cast<std::int32_t>(entry >> 32); }

    std::uint64_t* list_of(std::ptrdiff_t place) { return &lists_[place * slots_]; }
    const std::uint64_t* list_of(std::ptrdiff_t place) const { return &lists_[place * slots_]; }
    bool gone(std::ptrdiff_t place) const { return !gone_.empty() && gone_[place]; }

    void find_gone() {
        if (std::none_of(ids_, ids_ + index_.rows.n, [](std::int64_t id) { return id < 0; })) return;
        for (const std::ptrdiff_t row : index_.side->order) gone_.push_back(ids_[row] < 0);
    }

    void insert(std::uint64_t* list, std::uint64_t entry) const {
        std::ptrdiff_t at = slots_;
        while (at > 0 && list[at - 1] > entry) --at;
        if (at == slots_ || (at > 0 && list[at - 1] == entry) || list[at] == (entry | kOld)) return;
        std::copy_backward(list + at, list + slots_ - 1, list + slots_);
        list[at] = entry;
    }

    // What the 32-byte SAD of a near pair is at most, as a part of its full SAD: for nine tenths of the pairs of a sample.
    double near_ratio() const {
        constexpr std::ptrdiff_t kRows = 256;
        const std::ptrdiff_t n = index_.rows.n, bytes = index_.bytes();
        std::vector<double> ratios;
        for (std::ptrdiff_t s = 0; s < kRows; ++s) {
            const std::ptrdiff_t p = s * n / kRows, first = std::max<std::ptrdiff_t>(0, std::min(p - kCell / 2, n - kCell));
            std::vector<std::pair<std::int32_t, std::ptrdiff_t>> near;
            for (std::ptrdiff_t q = first; q < std::min(n, first + kCell); ++q)
                if (q != p) near.emplace_back(generic::sad(index_.code(p), index_.code(q), bytes), q);
            const std::ptrdiff_t some = std::min<std::ptrdiff_t>(slots_, near.size());
            std::partial_sort(near.begin(), near.begin() + some, near.end());
            std::uint8_t code[kCode], other[kCode];
            get_code(index_.side->near.data(), p, code);
            for (std::ptrdiff_t r = 0; r < some; ++r) {
                get_code(index_.side->near.data(), near[r].second, other);
                if (near[r].first > 0) ratios.push_back(static_cast<double>(generic::sad(code, other, kCode)) / near[r].first);
            }
        }
        if (ratios.empty()) return kFar;
        const auto most = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size()) * kKept / 100;
        std::nth_element(ratios.begin(), most, ratios.end());
        return *most;
    }

    void probe_cell(std::ptrdiff_t cell, std::ptrdiff_t from, std::ptrdiff_t to, double ratio) {
        const std::ptrdiff_t bytes = index_.bytes();
        const std::vector<std::uint32_t> around = index_.cells->around(cell, std::max<std::ptrdiff_t>(kRanked, 4 * to));
        const std::ptrdiff_t cells = static_cast<std::ptrdiff_t>(around.size());
        std::vector<std::int32_t> sads(around.size());
        std::vector<std::vector<std::ptrdiff_t>> visitors(around.size());
        for (std::ptrdiff_t p = index_.cells->first[cell]; p < index_.cells->first[cell + 1]; ++p) {
            if (gone(p)) continue;
            sads_to(index_.code(p), index_.cells->centres.data(), bytes, around.data(), cells, sads.data());
            Least before(sads.data(), cells, from), near(sads.data(), cells, to);
            for (std::ptrdiff_t c = 0; c < cells; ++c) {
                const bool met = before.has(sads[c]);
                if (near.has(sads[c]) && !met) visitors[c].push_back(p);
            }
        }
        for (std::ptrdiff_t c = 0; c < cells; ++c)  // all visitors of a cell in turn, while it is in the cache
            for (const std::ptrdiff_t p : visitors[c]) scan(p, around[c], ratio);
    }

    // A row meets the groups of a cell, some at a time, so that its list tightens. What the 32-byte codes say is too far
    // stays unmet; this depends on the list, and so on the row's own past alone.
    void scan(std::ptrdiff_t p, std::ptrdiff_t cell, double ratio) {
        const std::ptrdiff_t end = index_.cells->first[cell + 1];
        std::uint64_t* list = list_of(p);
        const std::ptrdiff_t at_once = list[slots_ - 1] == kEmpty ? kCell / kGroup : kBlock / kGroup;
        std::uint8_t code[kCode];
        get_code(index_.side->near.data(), p, code);
        std::uint16_t rows[kBlock + kSlack];
        std::int32_t sads[kBlock + kSlack];
        for (std::ptrdiff_t g = index_.cells->first[cell] / kGroup; g * kGroup < end; g += at_once) {
            const std::ptrdiff_t groups = std::min(at_once, (end - g * kGroup + kGroup - 1) / kGroup);
            const bool full = list[slots_ - 1] != kEmpty;
            const std::int32_t worst = full ? sad_of(list[slots_ - 1]) : kMost;
            const int near = full ? static_cast<int>(std::min<double>(kFar, worst * ratio)) : kFar;
            std::ptrdiff_t n = index_.scanner.scan(code, static_cast<std::int16_t>(near), 0,
                                                   &index_.side->near[g * kGroupBytes], ~0u >> (32 - groups),
                                                   one_sided().near, rows);
            const std::ptrdiff_t behind = index_.rows.n - g * kGroup;  // what fills the last group
            if (behind < groups * kGroup) n = std::remove_if(rows, rows + n, [&](int row) { return row >= behind; }) - rows;
            if (n == 0) continue;
            n = index_.scanner.narrow(index_.code(p), index_.code(g * kGroup), index_.bytes(), {worst, 0},
                                      one_sided().wide, rows, n, sads);
            // of the first ones, only those that stay in the list: the others would be put there for a while
            const std::int32_t most = full || !gone_.empty() ? worst : nth_least(sads, n, slots_ + 1);
            for (std::ptrdiff_t r = 0; r < n; ++r)
                if (sads[r] <= most) meet(p, list, sads[r], g * kGroup + rows[r]);
        }
    }

    void meet(std::ptrdiff_t p, std::uint64_t* list, std::int32_t sad, std::ptrdiff_t other) const {
        const std::uint64_t entry = entry_of(sad, other);
        if (entry < list[slots_ - 1] && other != p && !gone(other)) insert(list, entry);
    }

    // Limits with which a pair stays if its SAD is at most the query's own.
    struct OneSided {
        NearLimits near;
        Limit wide[kBlock];
        OneSided() {
            std::fill(near.a, near.a + kBlock, kNever);
            std::fill(near.e, near.e + kBlock, std::int16_t{0});
            std::fill(wide, wide + kBlock, Limit{-2 * kMost, 0});
        }
    };
    static const OneSided& one_sided() {
        static const OneSided limits;
        return limits;
    }

    // A row that is met twice is in the list already, or too far both times.
    void join_row(std::ptrdiff_t p, const std::vector<std::uint32_t>& frozen, std::vector<std::uint32_t>& met,
                  std::vector<std::int32_t>& sads) {
        const std::ptrdiff_t bytes = index_.bytes();
        const std::uint32_t* own = &frozen[p * slots_];
        met.clear();
        for (std::ptrdiff_t r = 0; r < slots_ && own[r] != kNobody; ++r) {
            const std::uint32_t* theirs = &frozen[static_cast<std::ptrdiff_t>(own[r] >> 1) * slots_];
            for (std::ptrdiff_t s = 0; s < slots_ && theirs[s] != kNobody; ++s) {
                if (own[r] & theirs[s] & kOld) continue;
                met.push_back(theirs[s] >> 1);
                const std::uint8_t* code = index_.code(theirs[s] >> 1);
                for (std::ptrdiff_t b = 0; b < std::min<std::ptrdiff_t>(bytes, 512); b += 64) __builtin_prefetch(code + b);
            }
        }
        sads.resize(met.size());
        sads_to(index_.code(p), index_.side->wide[0].data(), bytes, met.data(), static_cast<std::ptrdiff_t>(met.size()),
                sads.data());
        for (std::size_t c = 0; c < met.size(); ++c) meet(p, list_of(p), sads[c], met[c]);
    }

    // Each row meets those that hold it. Rows take turns, and offer what their lists held when theirs came: what they lose
    // to others meanwhile depends on threads. Whatever the order, the lists end as the K least of the same pairs.
    void reverse(int num_threads) {
        constexpr std::ptrdiff_t kLocked = 64, kTurn = 1 << 16;
        std::vector<std::mutex> locks(static_cast<std::size_t>((index_.rows.n + kLocked - 1) / kLocked));
        std::vector<std::uint64_t> held;
        for (std::ptrdiff_t start = 0; start < index_.rows.n; start += kTurn) {
            const std::ptrdiff_t rows = std::min(kTurn, index_.rows.n - start);
            held.assign(list_of(start), list_of(start) + rows * slots_);
            parallel_blocks(rows, kLocked, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
                for (std::ptrdiff_t p = first; p < first + count; ++p)
                    for (std::ptrdiff_t r = 0; r < slots_ && held[p * slots_ + r] != kEmpty; ++r) {
                        const std::uint64_t entry = held[p * slots_ + r];
                        if (entry & kOld) continue;  // was reversed when it was new
                        const std::ptrdiff_t q = place_of(entry);
                        const std::lock_guard<std::mutex> lock(locks[q / kLocked]);
                        insert(list_of(q), entry_of(sad_of(entry), start + p));
                    }
            });
        }
    }

    void prefetch(std::ptrdiff_t p) const {
        for (std::ptrdiff_t r = 0; r < slots_ && list_of(p)[r] != kEmpty; ++r)
            index_.rows.prefetch(index_.side->order[place_of(list_of(p)[r])]);
    }

    void measure(std::ptrdiff_t p, T* x, T* other, std::vector<std::pair<T, std::int64_t>>& found) const {
        const Rows<T>& rows = index_.rows;
        rows.read(index_.side->order[p], 1, x);
        found.clear();
        for (std::ptrdiff_t r = 0; r < slots_ && list_of(p)[r] != kEmpty; ++r) {
            const std::ptrdiff_t row = index_.side->order[place_of(list_of(p)[r])];
            T d;
            if (rows.in_place()) {
                d = distance(x, rows.row(row), rows.scale[row], rows.d, index_.w1, index_.w2);
            } else {
                rows.read(row, 1, other);
                d = distance(x, other, T(1), rows.d, index_.w1, index_.w2);
            }
            found.emplace_back(d, ids_[row]);
        }
        std::sort(found.begin(), found.end());
    }

    static constexpr std::ptrdiff_t kKept = 95;     // per cent of near pairs that the 32-byte codes are to keep
    static constexpr std::ptrdiff_t kRanked = 128;  // cells that a row chooses from

    const Index<T>& index_;
    const std::int64_t* ids_;
    const std::ptrdiff_t slots_;
    std::vector<char> gone_;            // by place; empty where all rows are there
    std::vector<std::uint64_t> lists_;  // by place, ascending
};

}  // namespace dm2
