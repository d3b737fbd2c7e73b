// The functions of scan.hpp, which includes this file, for AVX2.
#pragma once

// GCC 12 warns of the registers that its own AVX-512 functions leave undefined.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#define DM2_AVX2 __attribute__((target("avx2,popcnt")))

namespace dm2 {
namespace avx2 {

DM2_AVX2 inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

DM2_AVX2 inline __m128i load_low(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

struct Query {
    __m256i chunk[4];  // each of the code's four 8-byte chunks, in all lanes
};

DM2_AVX2 inline Query spread(const std::uint8_t* code) {
    Query query;
    for (int c = 0; c < 4; ++c) {
        long long chunk;
        std::memcpy(&chunk, code + 8 * c, 8);
        query.chunk[c] = _mm256_set1_epi64x(chunk);
    }
    return query;
}

// The SADs of a group's 16 rows, in row order.
DM2_AVX2 inline __m256i sads(const Query& query, const std::uint8_t* group) {
    __m256i all = _mm256_setzero_si256();
    for (int g = 3; g >= 0; --g) {
        const std::uint8_t* rows = group + 128 * g;
        const __m256i low = _mm256_add_epi64(_mm256_sad_epu8(query.chunk[0], load(rows)),
                                             _mm256_sad_epu8(query.chunk[1], load(rows + 32)));
        const __m256i high = _mm256_add_epi64(_mm256_sad_epu8(query.chunk[2], load(rows + 64)),
                                              _mm256_sad_epu8(query.chunk[3], load(rows + 96)));
        all = _mm256_or_si256(_mm256_slli_epi64(all, 16), _mm256_add_epi64(low, high));
    }
    return all;
}

DM2_AVX2 inline void near(const std::uint8_t* code, const std::uint8_t* groups, std::ptrdiff_t n_groups,
                          std::int16_t* out) {
    const Query query = spread(code);
    for (std::ptrdiff_t g = 0; g < n_groups; ++g)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + g * kGroup), sads(query, groups + g * kGroupBytes));
}

DM2_AVX2 inline std::uint32_t reach(const std::int16_t* most_e, const std::int16_t* most_a, std::int16_t from_a,
                                    std::int16_t from_e) {
    const __m256i a = _mm256_set1_epi16(from_a), e = _mm256_set1_epi16(from_e);
    __m256i skip[2];
    for (int half = 0; half < 2; ++half)
        skip[half] = _mm256_and_si256(_mm256_cmpgt_epi16(a, load(most_e + 16 * half)),
                                      _mm256_cmpgt_epi16(e, load(most_a + 16 * half)));
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(skip[0], skip[1]), 0xD8);
    return ~static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes));
}

// Append first + the positions of the set bits to the list: 8 entries are written, as many as there are bits count.
DM2_AVX2 inline std::uint16_t* append(std::uint16_t* list, unsigned byte, std::ptrdiff_t first) {
    const __m128i of = load_low(kPositions.of[byte]);
    const __m128i rows = _mm_add_epi16(_mm_cvtepu8_epi16(of), _mm_set1_epi16(static_cast<short>(first)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(list), rows);
    return list + _mm_popcnt_u32(byte);
}

DM2_AVX2 inline std::ptrdiff_t scan(const std::uint8_t* code, std::int16_t a, std::int16_t e,
                                    const std::uint8_t* groups, std::uint32_t bits, const NearLimits& limits,
                                    std::uint16_t* list) {
    const Query query = spread(code);
    const __m256i a_i = _mm256_set1_epi16(a), e_i = _mm256_set1_epi16(e);
    std::uint16_t* end = list;
    for (; bits; bits &= bits - 1) {
        const std::ptrdiff_t g = __builtin_ctz(bits), first = g * kGroup;
        const __m256i limit = _mm256_max_epi16(_mm256_adds_epi16(a_i, load(limits.e + first)),
                                               _mm256_adds_epi16(e_i, load(limits.a + first)));
        const __m256i drop = _mm256_cmpgt_epi16(sads(query, groups + g * kGroupBytes), limit);
        const unsigned keep = ~static_cast<unsigned>(_mm256_movemask_epi8(_mm256_packs_epi16(drop, drop)));
        end = append(end, keep & 0xFF, first);
        end = append(end, keep >> 16 & 0xFF, first + 8);
    }
    return end - list;
}

// Of eight rows, of which `left` are real, those that stay and their SADs move to list and sads; returns how many. The
// parts of row c's SAD are in the 64-bit lanes of s[c].
DM2_AVX2 inline std::ptrdiff_t keep(const __m256i* s, const std::uint16_t* rows, std::ptrdiff_t left, Limit own,
                                    const Limit* limits, std::uint16_t* list, std::int32_t* sads) {
    __m256i halves[2];  // of the sums of four rows each
    for (int h = 0; h < 2; ++h) {
        const __m256i s01 = _mm256_or_si256(s[4 * h], _mm256_slli_epi64(s[4 * h + 1], 32));
        const __m256i s23 = _mm256_or_si256(s[4 * h + 2], _mm256_slli_epi64(s[4 * h + 3], 32));
        halves[h] = _mm256_add_epi32(_mm256_unpacklo_epi64(s01, s23), _mm256_unpackhi_epi64(s01, s23));
    }
    const __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(halves[0], halves[1], 0x20),
                                          _mm256_permute2x128_si256(halves[0], halves[1], 0x31));

    // (a_j + e_i, e_j + a_i) of four rows each, then the larger of the two for all eight
    __m128i of[4];
    for (int h = 0; h < 4; ++h)
        of[h] = _mm_unpacklo_epi64(load_low(limits + rows[2 * h]), load_low(limits + rows[2 * h + 1]));
    const __m256i from_own = _mm256_setr_epi32(own.e, own.a, own.e, own.a, own.e, own.a, own.e, own.a);
    const __m256i l0145 = _mm256_inserti128_si256(_mm256_castsi128_si256(of[0]), of[2], 1);
    const __m256i l2367 = _mm256_inserti128_si256(_mm256_castsi128_si256(of[1]), of[3], 1);
    const __m256 both0145 = _mm256_castsi256_ps(_mm256_add_epi32(from_own, l0145));
    const __m256 both2367 = _mm256_castsi256_ps(_mm256_add_epi32(from_own, l2367));
    const __m256i limit = _mm256_max_epi32(_mm256_castps_si256(_mm256_shuffle_ps(both0145, both2367, 0x88)),
                                           _mm256_castps_si256(_mm256_shuffle_ps(both0145, both2367, 0xDD)));
    const __m256i drop = _mm256_cmpgt_epi32(sums, limit);
    const unsigned real = left >= 8 ? 255u : (1u << left) - 1;
    const unsigned stay = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(drop))) & real;

    const __m256i front = _mm256_cvtepu8_epi32(load_low(kPositions.of[stay]));
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows)));
    const __m256i packed = _mm256_permutevar8x32_epi32(wide, front);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(list),
                     _mm_packus_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sads), _mm256_permutevar8x32_epi32(sums, front));
    return _mm_popcnt_u32(stay);
}

// The parts of the SADs of the first rows of a list with a code, which share its loads.
template <int kRows>
DM2_AVX2 inline void add_up(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes,
                            const std::uint16_t* rows, __m256i* s) {
    const std::uint8_t* row[kRows];
    __m256i sum[kRows];
#pragma GCC unroll 8
    for (int c = 0; c < kRows; ++c) row[c] = codes + rows[c] * bytes, sum[c] = _mm256_setzero_si256();
    for (std::ptrdiff_t t = 0; t < bytes; t += 32) {
        const __m256i x = load(code + t);
#pragma GCC unroll 8
        for (int c = 0; c < kRows; ++c) sum[c] = _mm256_add_epi64(sum[c], _mm256_sad_epu8(x, load(row[c] + t)));
    }
#pragma GCC unroll 8
    for (int c = 0; c < kRows; ++c) s[c] = sum[c];
}

DM2_AVX2 inline std::ptrdiff_t narrow(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes,
                                      Limit own, const Limit* limits, std::uint16_t* list, std::ptrdiff_t n,
                                      std::int32_t* sads) {
    for (std::ptrdiff_t r = n; r % 8; ++r) list[r] = list[n - 1];
    std::ptrdiff_t stay = 0;
    for (std::ptrdiff_t r = 0; r < n; r += 8) {
        __m256i s[8] = {};
        if (n - r > 4)
            add_up<8>(code, codes, bytes, list + r, s);
        else
            add_up<4>(code, codes, bytes, list + r, s);
        stay += keep(s, list + r, n - r, own, limits, list + stay, sads + stay);
    }
    return stay;
}

constexpr Scanner kScanner{near, reach, scan, narrow, 0.5, 2.0, 0.026};

}  // namespace avx2

}  // namespace dm2
