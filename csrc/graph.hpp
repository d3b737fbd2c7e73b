// Approximate neighbours of all rows: for each row the rows with the least SAD of codes among those it meets.
#pragma once

#include <numeric>

#include "index.hpp"

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

// Whether a frozen list names a place.
DM2_CLONES inline bool names(const std::uint32_t* list, std::ptrdiff_t n, std::uint32_t place) {
    std::uint32_t found = 0;
    for (std::ptrdiff_t r = 0; r < n; ++r) found |= list[r] >> 1 == place;
    return found;
}

// What the rows of one part of a graph have to tell those of others: a list entry, and the place of the list.
struct Offers {
    std::vector<std::uint64_t> entries;
    std::vector<std::int64_t> places;
};

// The lists are the K least (SAD, place) of all pairs that were met, and which pairs are met depends on no thread: each
// step adds pairs that follow from the codes and from the lists as they were before it. A graph may have the lists of the
// places [first, last) only; then `frozen` and `Offers` are what its parts exchange.
template <class T>
class Graph {
public:
    // ids: a row with a negative one has left. slots: K. first, last: whole cells.
    Graph(const Index<T>& index, const std::int64_t* ids, std::ptrdiff_t slots, std::ptrdiff_t first, std::ptrdiff_t last)
        : index_(index), ids_(ids), slots_(slots), first_(first), last_(last),
          lists_(static_cast<std::size_t>((last - first) * slots), kEmpty) {
        find_gone();
    }

    // The same lists without the rows that have left since.
    Graph(const Graph& other, const std::int64_t* ids)
        : index_(other.index_), ids_(ids), slots_(other.slots_), first_(other.first_), last_(other.last_),
          lists_(other.lists_) {
        find_gone();
        for (std::ptrdiff_t p = first_; p < last_; ++p) {
            std::uint64_t* list = list_of(p);
            const bool left = gone(p);
            std::uint64_t* end = std::remove_if(list, list + slots_, [&](std::uint64_t entry) {
                return left || entry == kEmpty || gone(place_of(entry));
            });
            std::fill(end, list + slots_, kEmpty);
        }
    }

    std::ptrdiff_t first() const { return first_; }
    std::ptrdiff_t last() const { return last_; }
    std::ptrdiff_t slots() const { return slots_; }

    // Each row meets the rows of its nearest cells: from the one of rank `from` to that before `to`.
    template <class Report>
    void probe(std::ptrdiff_t from, std::ptrdiff_t to, int num_threads, const Report& report) {
        const double ratio = near_ratio();
        const std::vector<std::ptrdiff_t>& cells = index_.cells->first;
        const std::ptrdiff_t cell = std::lower_bound(cells.begin(), cells.end(), first_) - cells.begin();
        const std::ptrdiff_t end = std::lower_bound(cells.begin(), cells.end(), last_) - cells.begin();
        parallel_blocks(
            end - cell, 1, num_threads,
            [&](std::ptrdiff_t c, std::ptrdiff_t) { probe_cell(cell + c, from, to, ratio); }, report);
    }

    // The lists as `join` reads them, to out (last - first, slots), which no join has seen until now.
    void freeze(std::uint32_t* out) {
        for (std::size_t e = 0; e < lists_.size(); ++e) {
            out[e] = static_cast<std::uint32_t>(lists_[e]);
            lists_[e] |= kOld;
        }
    }
    // Whether what comes from elsewhere names rows that there are.
    bool is_frozen(std::uint32_t entry) const { return entry == kNobody || (entry >> 1) < index_.rows.n; }
    bool is_offer(std::uint64_t entry) const { return sad_of(entry) >= 0 && place_of(entry) < index_.rows.n; }

    // The rows around each row, which are itself, its neighbours and those that have it as one, meet each other, unless
    // both were around it at an earlier join. frozen: the lists of all rows. Lists of other parts are told by the result.
    template <class Report>
    Offers join(const std::uint32_t* frozen, int num_threads, const Report& report) {
        const Holders holders(*this, frozen);
        Shared shared(*this, frozen);
        std::mutex lock_of_offers;
        Offers offers;
        parallel_blocks(
            last_ - first_, 256, num_threads,
            [&](std::ptrdiff_t start, std::ptrdiff_t count) {
                Around here, next;  // of a row and the one behind it, whose codes are on their way
                Offers away;
                const std::ptrdiff_t end = first_ + start + count;
                for (std::ptrdiff_t p = first_ + start; p <= end; ++p) {
                    next.entries.clear();
                    if (p < end) find_around(p, frozen, holders, next);
                    if (!here.entries.empty()) meet_around(here, shared, away);
                    std::swap(here, next);
                }
                if (away.places.empty()) return;
                const std::lock_guard<std::mutex> lock(lock_of_offers);
                offers.places.insert(offers.places.end(), away.places.begin(), away.places.end());
                offers.entries.insert(offers.entries.end(), away.entries.begin(), away.entries.end());
            },
            report);
        return offers;
    }

    // Take what other parts offer; the places are of this one.
    void take(const std::int64_t* places, const std::uint64_t* entries, std::ptrdiff_t n) {
        for (std::ptrdiff_t i = 0; i < n; ++i)
            if (entries[i] < list_of(places[i])[slots_ - 1]) insert(list_of(places[i]), entries[i]);
    }

    // The rows in the lists at a place, to out (slots); -1 for none.
    void candidates(std::ptrdiff_t p, std::int64_t* out) const {
        for (std::ptrdiff_t r = 0; r < slots_; ++r)
            out[r] = list_of(p)[r] == kEmpty ? -1 : index_.side->order[place_of(list_of(p)[r])];
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
                    const std::uint64_t* list = list_of(places[i]);
                    const std::vector<std::ptrdiff_t>& order = index_.side->order;
                    const std::ptrdiff_t held = std::find(list, list + slots_, kEmpty) - list;
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
    // An entry of a list: SAD, place, and whether a join has seen it; places are below 2^31.
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0}, kOld = 1;
    static constexpr std::uint32_t kNobody = ~std::uint32_t{0};
    static std::uint64_t entry_of(std::int32_t sad, std::ptrdiff_t place) {
        return static_cast<std::uint64_t>(sad) << 32 | static_cast<std::uint64_t>(place) << 1;
    }
    static std::ptrdiff_t place_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry) >> 1; }
    static std::int32_t sad_of(std::uint64_t entry) { return static_cast<std::int32_t>(entry >> 32); }

    std::uint64_t* list_of(std::ptrdiff_t place) { return &lists_[(place - first_) * slots_]; }
    const std::uint64_t* list_of(std::ptrdiff_t place) const { return &lists_[(place - first_) * slots_]; }
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

    bool has(std::ptrdiff_t place) const { return first_ <= place && place < last_; }

    // Who has the rows of a graph in the frozen lists: `of` a place, each with the mark of its entry.
    class Holders {
    public:
        Holders(const Graph& graph, const std::uint32_t* frozen)
            : graph_(graph), end_(static_cast<std::size_t>(graph.last_ - graph.first_), 0) {
            each(frozen, [&](std::ptrdiff_t i, std::uint32_t) { ++end_[i]; });
            std::size_t all = 0;
            for (std::size_t& end : end_) all += std::exchange(end, all);
            rows_.resize(all);
            each(frozen, [&](std::ptrdiff_t i, std::uint32_t holder) { rows_[end_[i]++] = holder; });
        }
        std::pair<const std::uint32_t*, const std::uint32_t*> of(std::ptrdiff_t place) const {
            const std::ptrdiff_t i = place - graph_.first_;
            return {rows_.data() + (i > 0 ? end_[i - 1] : 0), rows_.data() + end_[i]};
        }

    private:
        template <class Visit>
        void each(const std::uint32_t* frozen, const Visit& visit) const {
            for (std::ptrdiff_t p = 0; p < graph_.index_.rows.n; ++p)
                for (const std::uint32_t* e = frozen + p * graph_.slots_; e < frozen + (p + 1) * graph_.slots_; ++e) {
                    if (*e == kNobody) break;
                    const std::ptrdiff_t held = *e >> 1;
                    if (graph_.has(held)) visit(held - graph_.first_, static_cast<std::uint32_t>(p) << 1 | (*e & kOld));
                }
        }

        const Graph& graph_;
        std::vector<std::size_t> end_;  // by place: behind its last
        std::vector<std::uint32_t> rows_;
    };

    // What the threads of a join share: the frozen lists, and a SAD that no entry for a list exceeds.
    struct Shared {
        const std::uint32_t* frozen;
        std::vector<std::mutex> locks;
        std::vector<std::atomic<std::int32_t>> farthest;

        Shared(const Graph& graph, const std::uint32_t* frozen_)
            : frozen(frozen_), locks(static_cast<std::size_t>((graph.last_ - graph.first_ + kLocked - 1) / kLocked)),
              farthest(static_cast<std::size_t>(graph.last_ - graph.first_)) {
            for (std::ptrdiff_t p = graph.first_; p < graph.last_; ++p) farthest[p - graph.first_] = graph.farthest(p);
        }
    };

    // The entries of the rows around one, first those that are new there, and room for them to meet.
    struct Around {
        std::vector<std::uint32_t> entries;
        std::ptrdiff_t fresh;
        std::vector<std::uint8_t> codes;
        std::vector<Limit> limits;
        std::vector<std::uint16_t> rows;
        std::vector<std::int32_t> sads;
    };

    void find_around(std::ptrdiff_t p, const std::uint32_t* frozen, const Holders& holders, Around& around) const {
        std::vector<std::uint32_t>& entries = around.entries;
        const std::uint32_t* own = frozen + p * slots_;
        entries.assign(own, std::find(own, own + slots_, kNobody));
        const auto forward = static_cast<std::ptrdiff_t>(entries.size());
        auto [holder, last] = holders.of(p);
        for (last = std::min(last, holder + kHolders); holder < last; ++holder) {
            std::ptrdiff_t twin = 0;
            while (twin < forward && entries[twin] >> 1 != *holder >> 1) ++twin;
            if (twin < forward)
                entries[twin] |= *holder & kOld;
            else
                entries.push_back(*holder);
        }
        const auto old = std::partition(entries.begin(), entries.end(), [](std::uint32_t entry) { return !(entry & kOld); });
        around.fresh = old - entries.begin();
        if (around.fresh == 0) return entries.clear();
        entries.push_back(static_cast<std::uint32_t>(p) << 1 | kOld);
        const std::ptrdiff_t bytes = std::min<std::ptrdiff_t>(index_.bytes(), 512);
        for (const std::uint32_t entry : entries) {
            const std::ptrdiff_t other = entry >> 1;
            for (std::ptrdiff_t b = 0; b < bytes; b += 64) __builtin_prefetch(index_.code(other) + b);
            __builtin_prefetch(frozen + other * slots_);
        }
    }

    // Each pair of which one is new. What a frozen list names already, and what is too far for both, is not offered.
    void meet_around(Around& around, Shared& shared, Offers& away) {
        const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(around.entries.size()), bytes = index_.bytes();
        around.codes.resize(static_cast<std::size_t>(n * bytes));
        around.limits.resize(static_cast<std::size_t>(n));
        around.rows.resize(static_cast<std::size_t>(n + kSlack));
        around.sads.resize(around.rows.size());
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            const std::ptrdiff_t p = around.entries[i] >> 1;
            std::copy_n(index_.code(p), bytes, &around.codes[i * bytes]);
            around.limits[i] = {has(p) ? shared.farthest[p - first_].load(std::memory_order_relaxed) : farthest(p, shared.frozen), 0};
        }
        for (std::ptrdiff_t i = 0; i < around.fresh; ++i) {
            const std::ptrdiff_t others = n - i - 1;
            std::iota(around.rows.begin(), around.rows.begin() + others, static_cast<std::uint16_t>(i + 1));
            const std::ptrdiff_t near =
                index_.scanner.narrow(&around.codes[i * bytes], around.codes.data(), bytes, around.limits[i],
                                      around.limits.data(), around.rows.data(), others, around.sads.data());
            for (std::ptrdiff_t r = 0; r < near; ++r) {
                const std::int32_t sad = around.sads[r];
                const auto tell = [&](std::ptrdiff_t to, std::ptrdiff_t of) {
                    const std::ptrdiff_t p = around.entries[to] >> 1;
                    const std::uint32_t other = around.entries[of] >> 1;
                    if (sad > around.limits[to].a || names(shared.frozen + p * slots_, slots_, other)) return;
                    if (has(p)) {
                        around.limits[to].a = offer(p, entry_of(sad, other), shared);
                    } else {
                        away.places.push_back(p);
                        away.entries.push_back(entry_of(sad, other));
                    }
                };
                tell(i, around.rows[r]);
                tell(around.rows[r], i);
            }
        }
    }

    std::int32_t farthest(std::ptrdiff_t p) const {
        const std::uint64_t last = list_of(p)[slots_ - 1];
        return last == kEmpty ? kMost : sad_of(last);
    }
    // That of another part, from its frozen list.
    std::int32_t farthest(std::ptrdiff_t p, const std::uint32_t* frozen) const {
        const std::uint32_t last = frozen[(p + 1) * slots_ - 1];
        return last == kNobody ? kMost : generic::sad(index_.code(p), index_.code(last >> 1), index_.bytes());
    }

    // Offer an entry to a list; returns what no further entry exceeds.
    std::int32_t offer(std::ptrdiff_t p, std::uint64_t entry, Shared& shared) {
        const std::lock_guard<std::mutex> lock(shared.locks[(p - first_) / kLocked]);
        if (entry < list_of(p)[slots_ - 1]) insert(list_of(p), entry);
        const std::int32_t most = farthest(p);
        shared.farthest[p - first_].store(most, std::memory_order_relaxed);
        return most;
    }

    void prefetch(std::ptrdiff_t p) const {
        for (std::ptrdiff_t r = 0; r < slots_ && list_of(p)[r] != kEmpty; ++r)
            index_.rows.prefetch(index_.side->order[place_of(list_of(p)[r])]);
    }

    static constexpr std::ptrdiff_t kKept = 95;     // per cent of near pairs that the 32-byte codes are to keep
    static constexpr std::ptrdiff_t kHolders = 64;  // of more that have a row, those with the first places
    static constexpr std::ptrdiff_t kLocked = 64;    // rows that share a lock
    static constexpr std::ptrdiff_t kRanked = 128;  // cells that a row chooses from

    const Index<T>& index_;
    const std::int64_t* ids_;
    const std::ptrdiff_t slots_, first_, last_;
    std::vector<char> gone_;            // by place; empty where all rows are there
    std::vector<std::uint64_t> lists_;  // by place, ascending
};

}  // namespace dm2
