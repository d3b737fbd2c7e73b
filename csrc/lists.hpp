// Lists of near rows, one for each place of a part of a graph: the K least of the entries that it was offered.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "scan.hpp"

namespace dm2 {

// An entry of a list: SAD, place, and whether a join has seen it; places are below 2^31. A frozen one lacks the SAD.
constexpr std::uint64_t kEmpty = ~std::uint64_t{0}, kOld = 1;
constexpr std::uint32_t kNobody = ~std::uint32_t{0};
inline std::uint64_t entry_of(std::int32_t sad, std::ptrdiff_t place) {
    return static_cast<std::uint64_t>(sad) << 32 | static_cast<std::uint64_t>(place) << 1;
}
inline std::ptrdiff_t place_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry) >> 1; }
inline std::int32_t sad_of(std::uint64_t entry) { return static_cast<std::int32_t>(entry >> 32); }

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

struct Lists {
    std::ptrdiff_t slots, first, last;   // K; the places are [first, last)
    std::vector<std::uint64_t> entries;  // by place, ascending

    Lists(std::ptrdiff_t slots_, std::ptrdiff_t first_, std::ptrdiff_t last_)
        : slots(slots_), first(first_), last(last_), entries(static_cast<std::size_t>((last - first) * slots), kEmpty) {}

    bool has(std::ptrdiff_t place) const { return first <= place && place < last; }
    std::uint64_t* of(std::ptrdiff_t place) { return &entries[(place - first) * slots]; }
    const std::uint64_t* of(std::ptrdiff_t place) const { return &entries[(place - first) * slots]; }

    // A SAD that no entry for a list exceeds.
    std::int32_t farthest(std::ptrdiff_t place) const {
        const std::uint64_t last_entry = of(place)[slots - 1];
        return last_entry == kEmpty ? kMost : sad_of(last_entry);
    }

    void offer(std::ptrdiff_t place, std::uint64_t entry) {
        std::uint64_t* list = of(place);
        if (entry >= list[slots - 1]) return;
        std::ptrdiff_t at = slots;
        while (at > 0 && list[at - 1] > entry) --at;
        if (at == slots || (at > 0 && list[at - 1] == entry) || list[at] == (entry | kOld)) return;
        std::copy_backward(list + at, list + slots - 1, list + slots);
        list[at] = entry;
    }
};

}  // namespace dm2
