// The functions of scan.hpp, which includes this file, for AVX-512 (F, BW and VL); the rest is AVX2's.
#pragma once

#include "scan_avx2.hpp"

#define DM2_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt")))

namespace dm2 {
namespace avx512 {

// The sum of both halves, for lanes that do not overflow.
DM2_AVX512 inline __m256i fold(__m512i x) {
    return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}

DM2_AVX512 inline std::ptrdiff_t scan(const std::uint8_t* code, std::int16_t a, std::int16_t e,
                                      const std::uint8_t* groups, std::uint32_t bits, const NearLimits& limits,
                                      std::uint16_t* list) {
    const __m512i query = _mm512_castsi256_si512(avx2::load(code));
    const __m512i c01 = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), query);
    const __m512i c23 = _mm512_permutexvar_epi64(_mm512_setr_epi64(2, 2, 2, 2, 3, 3, 3, 3), query);
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i a_i = _mm256_set1_epi16(a), e_i = _mm256_set1_epi16(e);
    std::uint16_t* end = list;
    for (; bits; bits &= bits - 1) {
        const int group = __builtin_ctz(bits), first = group * static_cast<int>(kGroup);
        __m512i sads = _mm512_setzero_si512();  // of the group's 16 rows, in row order; two parts of each
        for (int g = 3; g >= 0; --g) {
            const std::uint8_t* rows = groups + group * kGroupBytes + 128 * g;
            const __m512i sums = _mm512_add_epi64(_mm512_sad_epu8(c01, _mm512_loadu_si512(rows)),
                                                  _mm512_sad_epu8(c23, _mm512_loadu_si512(rows + 64)));
            sads = _mm512_or_si512(_mm512_slli_epi64(sads, 16), sums);
        }
        const __m256i limit = _mm256_max_epi16(_mm256_adds_epi16(a_i, avx2::load(limits.e + first)),
                                               _mm256_adds_epi16(e_i, avx2::load(limits.a + first)));
        const __mmask16 keep = _mm256_cmple_epi16_mask(fold(sads), limit);
        const __m512i rows = _mm512_maskz_compress_epi32(keep, _mm512_add_epi32(places, _mm512_set1_epi32(first)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(end), _mm512_cvtepi32_epi16(rows));
        end += _mm_popcnt_u32(keep);
    }
    return end - list;
}

// Eight rows at a time share the loads of the query: 64 bytes, or the last 32.
DM2_AVX512 inline std::ptrdiff_t narrow(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes,
                                        Limit own, const Limit* limits, std::uint16_t* list, std::ptrdiff_t n,
                                        std::int32_t* sads) {
    for (std::ptrdiff_t r = n; r % 8; ++r) list[r] = list[n - 1];
    std::ptrdiff_t stay = 0;
    for (std::ptrdiff_t r = 0; r < n; r += 8) {
        __m512i s[8] = {};
        for (std::ptrdiff_t t = 0; t < bytes; t += 64) {
            const __mmask8 in = bytes - t < 64 ? 0x0F : 0xFF;
            const __m512i x = _mm512_maskz_loadu_epi64(in, code + t);
            for (int c = 0; c < 8; ++c) {
                const __m512i row = _mm512_maskz_loadu_epi64(in, codes + list[r + c] * bytes + t);
                s[c] = _mm512_add_epi64(s[c], _mm512_sad_epu8(x, row));
            }
        }
        __m256i halves[8];
        for (int c = 0; c < 8; ++c) halves[c] = fold(s[c]);
        stay += avx2::keep(halves, list + r, n - r, own, limits, list + stay, sads + stay);
    }
    return stay;
}

constexpr Scanner kScanner{avx2::near, avx2::reach, scan, narrow, 0.5, 2.0, 0.026};  // AVX2's costs, not measured

}  // namespace avx512
}  // namespace dm2
