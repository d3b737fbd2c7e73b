// All rows around a row meet each other: its neighbours, and those that have it as one.
#pragma once

#include <atomic>
#include <mutex>
#include <numeric>

#include "index.hpp"
#include "lists.hpp"

namespace dm2 {

// Who has the places [first, last) in the frozen lists of all n rows, each with the mark of its entry.
class Holders {
public:
    Holders(std::ptrdiff_t first, std::ptrdiff_t last, const std::uint32_t* frozen, std::ptrdiff_t n, std::ptrdiff_t slots)
        : first_(first), end_(static_cast<std::size_t>(last - first), 0) {
        const auto each = [&](const auto& visit) {
            for (std::ptrdiff_t p = 0; p < n; ++p)
                for (std::ptrdiff_t r = p * slots; r < (p + 1) * slots && frozen[r] != kNobody; ++r)
                    if (const std::ptrdiff_t held = frozen[r] >> 1; first <= held && held < last)
                        visit(held - first, static_cast<std::uint32_t>(p) << 1 | (frozen[r] & kOld));
        };
        each([&](std::ptrdiff_t i, std::uint32_t) { ++end_[i]; });
        std::size_t all = 0;
        for (std::size_t& end : end_) all += std::exchange(end, all);
        rows_.resize(all);
        each([&](std::ptrdiff_t i, std::uint32_t holder) { rows_[end_[i]++] = holder; });
    }
    std::pair<const std::uint32_t*, const std::uint32_t*> of(std::ptrdiff_t place) const {
        const std::ptrdiff_t i = place - first_;
        return {rows_.data() + (i > 0 ? end_[i - 1] : 0), rows_.data() + end_[i]};
    }

private:
    std::ptrdiff_t first_;
    std::vector<std::size_t> end_;  // by place: behind its last
    std::vector<std::uint32_t> rows_;
};

// Which pairs meet follows from the frozen lists alone, and each list keeps the least entries: no order of the pairs and
// no division into parts changes a list.
template <class T>
class Join {
public:
    Join(const Index<T>& index, Lists& lists, const std::uint32_t* frozen)
        : index_(index), lists_(lists), frozen_(frozen),
          locks_(static_cast<std::size_t>((lists.last - lists.first + kLocked - 1) / kLocked)),
          farthest_(static_cast<std::size_t>(lists.last - lists.first)) {
        for (std::ptrdiff_t p = lists.first; p < lists.last; ++p) farthest_[p - lists.first] = lists.farthest(p);
    }

    // Some of the places at a time: who holds all of them would take half as much memory as the lists.
    template <class Report>
    Offers run(int num_threads, const Report& report) {
        Offers offers;
        const std::ptrdiff_t n = lists_.last - lists_.first, parts = 2 + n * lists_.slots / kTogether;
        for (std::ptrdiff_t part = 0; part < parts; ++part)
            run(lists_.first + n * part / parts, lists_.first + n * (part + 1) / parts, offers, num_threads,
                [&](double done) { report((static_cast<double>(part) + done) / static_cast<double>(parts)); });
        return offers;
    }

private:
    static constexpr std::ptrdiff_t kTogether = 1 << 23;  // holders, of four bytes
    static constexpr std::ptrdiff_t kHolders = 64;  // of more that have a row, those with the first places
    static constexpr std::ptrdiff_t kLocked = 64;   // rows that share a lock

    template <class Report>
    void run(std::ptrdiff_t from, std::ptrdiff_t to, Offers& offers, int num_threads, const Report& report) {
        const Holders holders(from, to, frozen_, index_.rows.n, lists_.slots);
        std::mutex lock_of_offers;
        parallel_blocks(
            to - from, 256, num_threads,
            [&](std::ptrdiff_t start, std::ptrdiff_t count) {
                Around here, next;  // of a row and the one behind it, whose codes are on their way
                Offers away;
                const std::ptrdiff_t end = from + start + count;
                for (std::ptrdiff_t p = from + start; p <= end; ++p) {
                    next.entries.clear();
                    if (p < end) find_around(p, holders, next);
                    if (!here.entries.empty()) meet_around(here, away);
                    std::swap(here, next);
                }
                if (away.places.empty()) return;
                const std::lock_guard<std::mutex> lock(lock_of_offers);
                offers.places.insert(offers.places.end(), away.places.begin(), away.places.end());
                offers.entries.insert(offers.entries.end(), away.entries.begin(), away.entries.end());
            },
            report);
    }

    // The entries of the rows around one, first those that are new there, and room for them to meet.
    struct Around {
        std::vector<std::uint32_t> entries;
        std::ptrdiff_t fresh;
        std::vector<std::uint8_t> codes;
        std::vector<Limit> limits;
        std::vector<std::uint16_t> rows;
        std::vector<std::int32_t> sads;
    };

    void find_around(std::ptrdiff_t p, const Holders& holders, Around& around) const {
        std::vector<std::uint32_t>& entries = around.entries;
        const std::uint32_t* own = frozen_ + p * lists_.slots;
        entries.assign(own, std::find(own, own + lists_.slots, kNobody));
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
        const auto old = std::partition(entries.begin(), entries.end(), [](std::uint32_t e) { return !(e & kOld); });
        around.fresh = old - entries.begin();
        if (around.fresh == 0) return entries.clear();
        entries.push_back(static_cast<std::uint32_t>(p) << 1 | kOld);
        const std::ptrdiff_t bytes = std::min<std::ptrdiff_t>(index_.bytes(), 512);
        for (const std::uint32_t entry : entries) {
            const std::ptrdiff_t other = entry >> 1;
            for (std::ptrdiff_t b = 0; b < bytes; b += 64) __builtin_prefetch(index_.code(other) + b);
            __builtin_prefetch(frozen_ + other * lists_.slots);
        }
    }

    // Each pair of which one is new. What a frozen list names already, and what is too far for both, is not offered.
    void meet_around(Around& around, Offers& away) {
        const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(around.entries.size()), bytes = index_.bytes();
        around.codes.resize(static_cast<std::size_t>(n * bytes));
        around.limits.resize(static_cast<std::size_t>(n));
        around.rows.resize(static_cast<std::size_t>(n + kSlack));
        around.sads.resize(around.rows.size());
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            const std::ptrdiff_t p = around.entries[i] >> 1;
            std::copy_n(index_.code(p), bytes, &around.codes[i * bytes]);
            around.limits[i] = {farthest(p), 0};
        }
        for (std::ptrdiff_t i = 0; i < around.fresh; ++i) {
            const std::ptrdiff_t others = n - i - 1;
            std::iota(around.rows.begin(), around.rows.begin() + others, static_cast<std::uint16_t>(i + 1));
            const std::ptrdiff_t near =
                index_.scanner.narrow(&around.codes[i * bytes], around.codes.data(), bytes, around.limits[i],
                                      around.limits.data(), around.rows.data(), others, around.sads.data());
            for (std::ptrdiff_t r = 0; r < near; ++r) {
                tell(around, i, around.rows[r], around.sads[r], away);
                tell(around, around.rows[r], i, around.sads[r], away);
            }
        }
    }

    void tell(Around& around, std::ptrdiff_t to, std::ptrdiff_t of, std::int32_t sad, Offers& away) {
        const std::ptrdiff_t p = around.entries[to] >> 1;
        const std::uint32_t other = around.entries[of] >> 1;
        if (sad > around.limits[to].a || names(frozen_ + p * lists_.slots, lists_.slots, other)) return;
        if (!lists_.has(p)) {
            away.places.push_back(p);
            away.entries.push_back(entry_of(sad, other));
            return;
        }
        const std::lock_guard<std::mutex> lock(locks_[(p - lists_.first) / kLocked]);
        lists_.offer(p, entry_of(sad, other));
        around.limits[to].a = lists_.farthest(p);
        farthest_[p - lists_.first].store(around.limits[to].a, std::memory_order_relaxed);
    }

    // A SAD that no entry for a list exceeds; for one of another part, from its frozen list.
    std::int32_t farthest(std::ptrdiff_t p) const {
        if (lists_.has(p)) return farthest_[p - lists_.first].load(std::memory_order_relaxed);
        const std::uint32_t last = frozen_[(p + 1) * lists_.slots - 1];
        return last == kNobody ? kMost : generic::sad(index_.code(p), index_.code(last >> 1), index_.bytes());
    }

    const Index<T>& index_;
    Lists& lists_;
    const std::uint32_t* frozen_;
    std::vector<std::mutex> locks_;
    std::vector<std::atomic<std::int32_t>> farthest_;  // by place
};

}  // namespace dm2
