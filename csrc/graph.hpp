// Approximate neighbours of all rows: for each row the rows with the least SAD of codes among those it meets.
#pragma once

#include "index.hpp"
#include "join.hpp"

namespace dm2 {

// The k nearest by (distance, id) of some rows to one of them; what is missing is empty. found: scratch.
template <class T, class RowOf>
void nearest_of(const Rows<T>& rows, std::ptrdiff_t own, std::ptrdiff_t count, const RowOf& row_of, const std::int64_t* ids,
                T w1, T w2, std::ptrdiff_t k, T* x, T* other, std::vector<std::pair<T, std::int64_t>>& found) {
    rows.read(own, 1, x);
    found.clear();
    for (std::ptrdiff_t r = 0; r < count; ++r) {
        const std::ptrdiff_t row = row_of(r);
        T d;
        if (rows.in_place()) {
            d = distance(x, rows.row(row), rows.scale[row], rows.d, w1, w2);
        } else {
            rows.read(row, 1, other);
            d = distance(x, other, T(1), rows.d, w1, w2);
        }
        found.emplace_back(d, ids[row]);
    }
    std::sort(found.begin(), found.end());
    found.resize(static_cast<std::size_t>(k), {std::numeric_limits<T>::infinity(), std::numeric_limits<std::int64_t>::max()});
}

// The lists are the K least (SAD, place) of all pairs that were met, and which pairs are met depends on no thread: each
// step adds pairs that follow from the codes and from the lists as they were before it. A graph may have the lists of the
// places [first, last) only; then `frozen` and `Offers` are what its parts exchange.
template <class T>
class Graph {
public:
    // ids: a row with a negative one has left. slots: K. first, last: whole cells.
    Graph(const Index<T>& index, const std::int64_t* ids, std::ptrdiff_t slots, std::ptrdiff_t first, std::ptrdiff_t last)
        : index_(index), ids_(ids), lists_(slots, first, last) {
        find_gone();
    }

    // The same lists without the rows that have left since.
    Graph(const Graph& other, const std::int64_t* ids)
        : index_(other.index_), ids_(ids), lists_(other.lists_) {
        find_gone();
        for (std::ptrdiff_t p = lists_.first; p < lists_.last; ++p) {
            std::uint64_t* list = lists_.of(p);
            const bool left = gone(p);
            std::uint64_t* end = std::remove_if(list, list + lists_.slots, [&](std::uint64_t entry) {
                return left || entry == kEmpty || gone(place_of(entry));
            });
            std::fill(end, list + lists_.slots, kEmpty);
        }
    }

    std::ptrdiff_t first() const { return lists_.first; }
    std::ptrdiff_t last() const { return lists_.last; }
    std::ptrdiff_t slots() const { return lists_.slots; }

    // Each row meets the rows of its nearest cells: from the one of rank `from` to that before `to`.
    template <class Report>
    void probe(std::ptrdiff_t from, std::ptrdiff_t to, int num_threads, const Report& report) {
        const double ratio = near_ratio();
        const std::vector<std::ptrdiff_t>& cells = index_.cells->first;
        const std::ptrdiff_t cell = std::lower_bound(cells.begin(), cells.end(), lists_.first) - cells.begin();
        const std::ptrdiff_t end = std::lower_bound(cells.begin(), cells.end(), lists_.last) - cells.begin();
        parallel_blocks(
            end - cell, 1, num_threads,
            [&](std::ptrdiff_t c, std::ptrdiff_t) { probe_cell(cell + c, from, to, ratio); }, report);
    }

    // The lists as `join` reads them, to out (last - first, slots), which no join has seen until now.
    void freeze(std::uint32_t* out) {
        for (std::uint64_t& entry : lists_.entries) {
            *out++ = static_cast<std::uint32_t>(entry);
            entry |= kOld;
        }
    }
    // Whether what comes from elsewhere names rows that there are.
    bool is_frozen(std::uint32_t entry) const { return entry == kNobody || (entry >> 1) < index_.rows.n; }
    bool is_offer(std::uint64_t entry) const { return sad_of(entry) >= 0 && place_of(entry) < index_.rows.n; }

    // The rows around each row, which are itself, its neighbours and those that have it as one, meet each other, unless
    // both were around it at an earlier join. frozen: the lists of all rows. Lists of other parts are told by the result.
    template <class Report>
    Offers join(const std::uint32_t* frozen, int num_threads, const Report& report) {
        return Join<T>(index_, lists_, frozen).run(num_threads, report);
    }

    // Take what other parts offer; the places are of this one.
    void take(const std::int64_t* places, const std::uint64_t* entries, std::ptrdiff_t n) {
        for (std::ptrdiff_t i = 0; i < n; ++i) lists_.offer(places[i], entries[i]);
    }

    // The rows in the lists at a place, to out (slots); -1 for none.
    void candidates(std::ptrdiff_t p, std::int64_t* out) const {
        for (std::ptrdiff_t r = 0; r < lists_.slots; ++r)
            out[r] = lists_.of(p)[r] == kEmpty ? -1 : index_.side->order[place_of(lists_.of(p)[r])];
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
                    const std::uint64_t* list = lists_.of(places[i]);
                    const std::vector<std::ptrdiff_t>& order = index_.side->order;
                    const std::ptrdiff_t held = std::find(list, list + lists_.slots, kEmpty) - list;
                    nearest_of(
                        index_.rows, order[places[i]], held, [&](std::ptrdiff_t r) { return order[place_of(list[r])]; },
                        ids_, index_.w1, index_.w2, k, x.data(), other.data(), found);
                    for (std::ptrdiff_t r = 0; r < k; ++r)
                        std::tie(distances[to[i] * k + r], ids[to[i] * k + r]) = found[r];
                }
            },
            report);
    }

private:
    bool gone(std::ptrdiff_t place) const { return !gone_.empty() && gone_[place]; }

    void find_gone() {
        if (std::none_of(ids_, ids_ + index_.rows.n, [](std::int64_t id) { return id < 0; })) return;
        for (const std::ptrdiff_t row : index_.side->order) gone_.push_back(ids_[row] < 0);
    }

    // What the 32-byte SAD of a near pair is at most, as a part of its full SAD: for nearly all pairs of a sample.
    double near_ratio() const {
        constexpr std::ptrdiff_t kRows = 256;
        const std::ptrdiff_t n = index_.rows.n, bytes = index_.bytes();
        std::vector<double> ratios;
        for (std::ptrdiff_t s = 0; s < kRows; ++s) {
            const std::ptrdiff_t p = s * n / kRows, first = std::max<std::ptrdiff_t>(0, std::min(p - kCell / 2, n - kCell));
            std::vector<std::pair<std::int32_t, std::ptrdiff_t>> near;
            for (std::ptrdiff_t q = first; q < std::min(n, first + kCell); ++q)
                if (q != p) near.emplace_back(generic::sad(index_.code(p), index_.code(q), bytes), q);
            const std::ptrdiff_t some = std::min<std::ptrdiff_t>(lists_.slots, near.size());
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
        const std::ptrdiff_t at_once = lists_.farthest(p) == kMost ? kCell / kGroup : kBlock / kGroup;
        std::uint8_t code[kCode];
        get_code(index_.side->near.data(), p, code);
        std::uint16_t rows[kBlock + kSlack];
        std::int32_t sads[kBlock + kSlack];
        for (std::ptrdiff_t g = index_.cells->first[cell] / kGroup; g * kGroup < end; g += at_once) {
            const std::ptrdiff_t groups = std::min(at_once, (end - g * kGroup + kGroup - 1) / kGroup);
            const std::int32_t worst = lists_.farthest(p);
            const bool full = worst < kMost;
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
            const std::int32_t most = full || !gone_.empty() ? worst : nth_least(sads, n, lists_.slots + 1);
            for (std::ptrdiff_t r = 0; r < n; ++r)
                if (sads[r] <= most) meet(p, sads[r], g * kGroup + rows[r]);
        }
    }

    void meet(std::ptrdiff_t p, std::int32_t sad, std::ptrdiff_t other) {
        if (other != p && !gone(other)) lists_.offer(p, entry_of(sad, other));
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

    void prefetch(std::ptrdiff_t p) const {
        for (std::ptrdiff_t r = 0; r < lists_.slots && lists_.of(p)[r] != kEmpty; ++r)
            index_.rows.prefetch(index_.side->order[place_of(lists_.of(p)[r])]);
    }

    static constexpr std::ptrdiff_t kKept = 95;     // per cent of near pairs that the 32-byte codes are to keep
    static constexpr std::ptrdiff_t kRanked = 128;  // cells that a row chooses from

    const Index<T>& index_;
    const std::int64_t* ids_;
    std::vector<char> gone_;            // by place; empty where all rows are there
    Lists lists_;
};

}  // namespace dm2
