// Sums of absolute differences (SAD) of byte codes. Only scan_*.hpp, one for each instruction set, have intrinsics. All
// give the same results, because they are integers.
//
// 32-byte codes lie in groups of 16 rows, so that no sum has to be added up across a register: 8-byte chunk c of row
// 4 l + g is at byte (4 g + c) * 32 + 8 l of its group.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "codes.hpp"

namespace dm2 {

constexpr std::ptrdiff_t kGroup = 16;            // rows that are skipped together
constexpr std::ptrdiff_t kBlock = 32 * kGroup;   // rows of a tile's side: one bit of a word for each group
constexpr std::ptrdiff_t kGroupBytes = kGroup * kCode;
constexpr int kFar = kCode * 255;                // the largest SAD of two 32-byte codes
constexpr std::ptrdiff_t kSlack = 16;            // entries that may be written behind a list

// Limits of 16-bit sums: a pair stays if SAD <= max(a_i + e_j, a_j + e_i). kNever as a (and e) keeps nothing.
constexpr std::int16_t kNever = -20000;
struct NearLimits {
    std::int16_t a[kBlock], e[kBlock];
};

// The same for 32-bit sums; kMost keeps every pair.
constexpr std::int32_t kMost = 1 << 29;
struct Limit {
    std::int32_t a, e;
};

// Byte offset of chunk c of a row's 32-byte code.
inline std::ptrdiff_t chunk_at(std::ptrdiff_t row, std::ptrdiff_t c) {
    const std::ptrdiff_t g = row % 4, l = row % kGroup / 4;
    return row / kGroup * kGroupBytes + (4 * g + c) * 32 + 8 * l;
}
inline void put_code(std::uint8_t* codes, std::ptrdiff_t row, const std::uint8_t* code) {
    for (std::ptrdiff_t c = 0; c < 4; ++c) std::memcpy(codes + chunk_at(row, c), code + 8 * c, 8);
}
inline void get_code(const std::uint8_t* codes, std::ptrdiff_t row, std::uint8_t* code) {
    for (std::ptrdiff_t c = 0; c < 4; ++c) std::memcpy(code + 8 * c, codes + chunk_at(row, c), 8);
}

// What an instruction set provides.
struct Scanner {
    // out[r] = SAD of the code with each row of the groups.
    void (*near)(const std::uint8_t* code, const std::uint8_t* groups, std::ptrdiff_t n_groups, std::int16_t* out);
    // The groups (bits) that may hold a row to keep: not (from_a > most_e[g] and from_e > most_a[g]).
    std::uint32_t (*reach)(const std::int16_t* most_e, const std::int16_t* most_a, std::int16_t from_a,
                           std::int16_t from_e);
    // The rows of the groups given as bits that stay for a query with limits (a, e); returns how many.
    std::ptrdiff_t (*scan)(const std::uint8_t* code, std::int16_t a, std::int16_t e, const std::uint8_t* groups,
                           std::uint32_t bits, const NearLimits& limits, std::uint16_t* list);
    // Of the list, the rows that stay for a query with limits `own`, and their SADs with its code; returns how many.
    // codes[row] is `bytes` long. Up to 7 entries behind list and sads are overwritten.
    std::ptrdiff_t (*narrow)(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes, Limit own,
                             const Limit* limits, std::uint16_t* list, std::ptrdiff_t n, std::int32_t* sads);
    // Nanoseconds on one core, for the choice of levels: a pair in `scan`; a pair in `narrow`, and each of its bytes.
    double scan_cost, narrow_cost, byte_cost;
};

namespace generic {

inline std::int32_t sad(const std::uint8_t* x, const std::uint8_t* y, std::ptrdiff_t n) {
    std::int32_t sum = 0;
    for (std::ptrdiff_t t = 0; t < n; ++t) sum += std::abs(x[t] - y[t]);
    return sum;
}

inline void near(const std::uint8_t* code, const std::uint8_t* groups, std::ptrdiff_t n_groups, std::int16_t* out) {
    for (std::ptrdiff_t row = 0; row < n_groups * kGroup; ++row) {
        std::uint8_t other[kCode];
        get_code(groups, row, other);
        out[row] = static_cast<std::int16_t>(sad(code, other, kCode));
    }
}

inline std::uint32_t reach(const std::int16_t* most_e, const std::int16_t* most_a, std::int16_t from_a,
                           std::int16_t from_e) {
    std::uint32_t bits = 0;
    for (int g = 0; g < kBlock / kGroup; ++g)
        bits |= static_cast<std::uint32_t>(!(from_a > most_e[g] && from_e > most_a[g])) << g;
    return bits;
}

inline std::ptrdiff_t scan(const std::uint8_t* code, std::int16_t a, std::int16_t e, const std::uint8_t* groups,
                           std::uint32_t bits, const NearLimits& limits, std::uint16_t* list) {
    std::ptrdiff_t n = 0;
    for (std::ptrdiff_t g = 0; g < kBlock / kGroup; ++g) {
        if (!(bits >> g & 1)) continue;
        std::int16_t sads[kGroup];
        near(code, groups + g * kGroupBytes, 1, sads);
        for (std::ptrdiff_t j = g * kGroup; j < (g + 1) * kGroup; ++j) {
            list[n] = static_cast<std::uint16_t>(j);
            n += sads[j % kGroup] <= std::max(a + limits.e[j], e + limits.a[j]);
        }
    }
    return n;
}

inline std::ptrdiff_t narrow(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes, Limit own,
                             const Limit* limits, std::uint16_t* list, std::ptrdiff_t n, std::int32_t* sads) {
    std::ptrdiff_t stay = 0;
    for (std::ptrdiff_t r = 0; r < n; ++r) {
        const std::uint16_t row = list[r];
        list[stay] = row;
        sads[stay] = sad(code, codes + row * bytes, bytes);
        stay += sads[stay] <= std::max(own.a + limits[row].e, own.e + limits[row].a);
    }
    return stay;
}

constexpr Scanner kScanner{near, reach, scan, narrow, 10.0, 4.0, 0.1};

}  // namespace generic

// The positions of the set bits of a byte, packed to the front.
struct Positions {
    std::uint8_t of[256][8] = {};
    constexpr Positions() {
        for (int byte = 0; byte < 256; ++byte)
            for (int bit = 0, n = 0; bit < 8; ++bit)
                if (byte >> bit & 1) of[byte][n++] = static_cast<std::uint8_t>(bit);
    }
};
inline constexpr Positions kPositions;

}  // namespace dm2

#if defined(__x86_64__) && defined(__GNUC__)
#define DM2_X86
#include "scan_avx2.hpp"
#include "scan_avx512.hpp"
#elif defined(__AARCH64EL__) && defined(__GNUC__)
#define DM2_NEON
#include "scan_neon.hpp"
#endif

namespace dm2 {

enum class Isa { automatic, avx512, avx2, neon, generic };

// The functions of an instruction set; null if this machine or this build lacks it. AVX-512 is not a default: it was
// checked in emulation and never timed.
inline const Scanner* scanner(Isa isa) {
    const bool any = isa == Isa::automatic;
#ifdef DM2_X86
    if (isa == Isa::avx512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &avx512::kScanner;
    if ((any || isa == Isa::avx2) && __builtin_cpu_supports("avx2")) return &avx2::kScanner;
#endif
#ifdef DM2_NEON
    if (any || isa == Isa::neon) return &neon::kScanner;
#endif
    return any || isa == Isa::generic ? &generic::kScanner : nullptr;
}

}  // namespace dm2
