// Approximate neighbours of all rows: for each row the rows with the least SAD of codes among those it meets.
#pragma once

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
          lists_(static_cast<std::size_t>((last - first) * slots), kEmpty) {}

    // The same lists without the rows that have left since.
    Graph(const Graph& other, const std::int64_t* ids)
        : index_(other.index_), ids_(ids), slots_(other.slots_), first_(other.first_), last_(other.last_),
          lists_(other.lists_) {
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
    Offers probe(std::ptrdiff_t from, std::ptrdiff_t to, int num_threads, const Report& report) {
        const double ratio = near_ratio();
        const std::vector<std::ptrdiff_t>& cells = index_.cells->first;
        const std::ptrdiff_t cell = std::lower_bound(cells.begin(), cells.end(), first_) - cells.begin();
        const std::ptrdiff_t end = std::lower_bound(cells.begin(), cells.end(), last_) - cells.begin();
        parallel_blocks(
            end - cell, 1, num_threads,
            [&](std::ptrdiff_t c, std::ptrdiff_t) { probe_cell(cell + c, from, to, ratio); }, report);
        return reverse(num_threads);
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

    // Each row meets the neighbours of its neighbours, where one of the two steps is new since the last join.
    // frozen: the lists of all rows.
    template <class Report>
    void join(const std::uint32_t* frozen, int num_threads, const Report& report) {
        const std::ptrdiff_t n = last_;
        parallel_blocks(
            last_ - first_, 256, num_threads,
            [&](std::ptrdiff_t start, std::ptrdiff_t count) {
                std::vector<std::uint32_t> met;
                std::vector<std::int32_t> sads;
                for (std::ptrdiff_t p = first_ + start; p < first_ + start + count; ++p) {
                    for (std::ptrdiff_t r = 0; p + 1 < n && r < slots_ && frozen[(p + 1) * slots_ + r] != kNobody; ++r)
                        __builtin_prefetch(&frozen[static_cast<std::ptrdiff_t>(frozen[(p + 1) * slots_ + r] >> 1) * slots_]);
                    if (!gone(p)) join_row(p, frozen, met, sads);
                }
            },
            report);
    }

    // Each row meets those that hold it, as the lists are now; whoever is elsewhere is told by what is returned.
    Offers reverse(int num_threads) {
        constexpr std::ptrdiff_t kLocked = 64;
        const std::ptrdiff_t n = last_ - first_;
        std::vector<std::mutex> locks(static_cast<std::size_t>((n + kLocked - 1) / kLocked));
        const std::vector<std::uint64_t> held = lists_;  // a row offers what others push from its list meanwhile
        std::mutex lock_of_offers;
        Offers offers;
        parallel_blocks(n, kLocked, num_threads, [&](std::ptrdiff_t start, std::ptrdiff_t count) {
            Offers away;
            for (std::ptrdiff_t i = start; i < start + count; ++i)
                for (std::ptrdiff_t r = 0; r < slots_ && held[i * slots_ + r] != kEmpty; ++r) {
                    const std::uint64_t entry = held[i * slots_ + r];
                    if (entry & kOld) continue;  // was reversed when it was new
                    const std::ptrdiff_t q = place_of(entry);
                    const std::uint64_t offer = entry_of(sad_of(entry), first_ + i);
                    if (q < first_ || q >= last_) {
                        away.places.push_back(q);
                        away.entries.push_back(offer);
                        continue;
                    }
                    const std::lock_guard<std::mutex> lock(locks[(q - first_) / kLocked]);
                    insert(list_of(q), offer);
                }
            if (away.places.empty()) return;
            const std::lock_guard<std::mutex> lock(lock_of_offers);
            offers.places.insert(offers.places.end(), away.places.begin(), away.places.end());
            offers.entries.insert(offers.entries.end(), away.entries.begin(), away.entries.end());
        });
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
    std::int64_t id_of(std::ptrdiff_t place) const { return ids_[index_.side->order[place]]; }
    bool gone(std::ptrdiff_t place) const { return id_of(place) < 0; }

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
        std::vector<std::uint64_t> ranked;
        std::vector<std::vector<std::ptrdiff_t>> visitors(around.size());
        for (std::ptrdiff_t p = index_.cells->first[cell]; p < index_.cells->first[cell + 1]; ++p) {
            if (gone(p)) continue;
            sads_to(index_.code(p), index_.cells->centres.data(), bytes, around.data(), cells, sads.data());
            least(ranked, sads.data(), cells, to);
            for (std::size_t r = from; r < ranked.size(); ++r) visitors[static_cast<std::uint32_t>(ranked[r])].push_back(p);
        }
        for (std::ptrdiff_t c = 0; c < cells; ++c)  // all visitors of a cell in turn, while it is in the cache
            for (const std::ptrdiff_t p : visitors[c]) scan(p, around[c], ratio);
    }

    // A row meets the groups of a cell, some at a time, so that its list tightens. What the 32-byte codes say is too far
    // stays unmet; this depends on the list, and so on the row's own past alone.
    void scan(std::ptrdiff_t p, std::ptrdiff_t cell, double ratio) {
        const std::ptrdiff_t end = index_.cells->first[cell + 1];
        std::uint64_t* list = list_of(p);
        const std::ptrdiff_t at_once = list[slots_ - 1] == kEmpty ? 4 : 32;
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
            for (std::ptrdiff_t r = 0; r < n; ++r) meet(p, list, sads[r], g * kGroup + rows[r]);
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
    void join_row(std::ptrdiff_t p, const std::uint32_t* frozen, std::vector<std::uint32_t>& met,
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

    void prefetch(std::ptrdiff_t p) const {
        for (std::ptrdiff_t r = 0; r < slots_ && list_of(p)[r] != kEmpty; ++r)
            index_.rows.prefetch(index_.side->order[place_of(list_of(p)[r])]);
    }

    static constexpr std::ptrdiff_t kKept = 90;    // per cent of near pairs that the 32-byte codes are to keep
    static constexpr std::ptrdiff_t kRanked = 64;  // cells that a row chooses from

    const Index<T>& index_;
    const std::int64_t* ids_;
    const std::ptrdiff_t slots_, first_, last_;
    std::vector<std::uint64_t> lists_;  // by place, ascending
};

}  // namespace dm2
