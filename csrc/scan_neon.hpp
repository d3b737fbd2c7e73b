// The functions of scan.hpp, which includes this file, for NEON, which every 64-bit Arm has.
#pragma once

#include <arm_neon.h>

namespace dm2 {
namespace neon {

// Byte shuffles that pack the 4-byte, or the 2-byte, elements of the set bits of four to the front.
struct Packs {
    std::uint8_t of4[16][16] = {}, of2[16][8] = {};
    constexpr Packs() {
        for (int bits = 0; bits < 16; ++bits)
            for (int bit = 0, n = 0; bit < 4; ++bit) {
                if (!(bits >> bit & 1)) continue;
                for (int b = 0; b < 4; ++b) of4[bits][4 * n + b] = static_cast<std::uint8_t>(4 * bit + b);
                for (int b = 0; b < 2; ++b) of2[bits][2 * n + b] = static_cast<std::uint8_t>(2 * bit + b);
                ++n;
            }
    }
};
inline constexpr Packs kPacks;

inline void near(const std::uint8_t* code, const std::uint8_t* groups, std::ptrdiff_t n_groups, std::int16_t* out) {
    for (std::ptrdiff_t group = 0; group < n_groups; ++group, out += kGroup) {
        uint16x8_t sums[4];  // [g]: of rows 4 l + g, two parts for each l
        for (int g = 0; g < 4; ++g) {
            uint16x8_t low = vdupq_n_u16(0), high = low;  // four parts for each of two l
            for (int c = 0; c < 4; ++c, groups += 32) {
                const uint8x16_t chunk = vcombine_u8(vld1_u8(code + 8 * c), vld1_u8(code + 8 * c));
                low = vpadalq_u8(low, vabdq_u8(chunk, vld1q_u8(groups)));
                high = vpadalq_u8(high, vabdq_u8(chunk, vld1q_u8(groups + 16)));
            }
            sums[g] = vpaddq_u16(low, high);
        }
        const uint16x8_t even = vpaddq_u16(sums[0], sums[2]), odd = vpaddq_u16(sums[1], sums[3]);
        const uint32x4_t g01 = vreinterpretq_u32_u16(vzip1q_u16(even, odd));
        const uint32x4_t g23 = vreinterpretq_u32_u16(vzip2q_u16(even, odd));
        vst1q_s16(out, vreinterpretq_s16_u32(vzip1q_u32(g01, g23)));
        vst1q_s16(out + 8, vreinterpretq_s16_u32(vzip2q_u32(g01, g23)));
    }
}

inline std::ptrdiff_t scan(const std::uint8_t* code, std::int16_t a, std::int16_t e, const std::uint8_t* groups,
                           std::uint32_t bits, const NearLimits& limits, std::uint16_t* list) {
    const int16x8_t a_i = vdupq_n_s16(a), e_i = vdupq_n_s16(e);
    const uint16x8_t bit = {1, 2, 4, 8, 16, 32, 64, 128};
    std::uint16_t* end = list;
    for (; bits; bits &= bits - 1) {
        const std::ptrdiff_t g = __builtin_ctz(bits);
        std::int16_t sads[kGroup];
        near(code, groups + g * kGroupBytes, 1, sads);
        for (int half = 0; half < kGroup; half += 8) {
            const std::ptrdiff_t first = g * kGroup + half;
            const int16x8_t limit = vmaxq_s16(vqaddq_s16(a_i, vld1q_s16(limits.e + first)),
                                              vqaddq_s16(e_i, vld1q_s16(limits.a + first)));
            const unsigned keep = vaddvq_u16(vandq_u16(vcleq_s16(vld1q_s16(sads + half), limit), bit));
            const uint16x8_t of = vmovl_u8(vld1_u8(kPositions.of[keep]));
            vst1q_u16(end, vaddq_u16(of, vdupq_n_u16(static_cast<std::uint16_t>(first))));
            end += __builtin_popcount(keep);
        }
    }
    return end - list;
}

// Four rows at a time share the loads of the query.
inline std::ptrdiff_t narrow(const std::uint8_t* code, const std::uint8_t* codes, std::ptrdiff_t bytes, Limit own,
                             const Limit* limits, std::uint16_t* list, std::ptrdiff_t n, std::int32_t* sads) {
    const int32x4_t from_own = {own.e, own.a, own.e, own.a};
    const uint32x4_t bit = {1, 2, 4, 8};
    for (std::ptrdiff_t r = n; r % 4; ++r) list[r] = list[n - 1];
    std::ptrdiff_t stay = 0;
    for (std::ptrdiff_t r = 0; r < n; r += 4) {
        uint32x4_t s[4] = {};
        int32x2_t l[4];
        for (int k = 0; k < 4; ++k) l[k] = vld1_s32(&limits[list[r + k]].a);
        for (std::ptrdiff_t t = 0; t < bytes; t += 32)
            for (int k = 0; k < 4; ++k) {
                const std::uint8_t *x = code + t, *row = codes + list[r + k] * bytes + t;
                const uint16x8_t low = vpaddlq_u8(vabdq_u8(vld1q_u8(x), vld1q_u8(row)));
                s[k] = vpadalq_u16(s[k], vpadalq_u8(low, vabdq_u8(vld1q_u8(x + 16), vld1q_u8(row + 16))));
            }
        const int32x4_t sums = vreinterpretq_s32_u32(vpaddq_u32(vpaddq_u32(s[0], s[1]), vpaddq_u32(s[2], s[3])));
        // (e_i + a_j, a_i + e_j) of two rows each, then the larger of the two for all four
        const int32x4_t limit = vpmaxq_s32(vaddq_s32(from_own, vcombine_s32(l[0], l[1])),
                                           vaddq_s32(from_own, vcombine_s32(l[2], l[3])));
        const unsigned real = n - r >= 4 ? 15u : (1u << (n - r)) - 1;
        const unsigned keep = vaddvq_u32(vandq_u32(vcleq_s32(sums, limit), bit)) & real;
        const uint8x8_t rows = vtbl1_u8(vreinterpret_u8_u16(vld1_u16(list + r)), vld1_u8(kPacks.of2[keep]));
        vst1_u16(list + stay, vreinterpret_u16_u8(rows));
        const uint8x16_t kept = vqtbl1q_u8(vreinterpretq_u8_s32(sums), vld1q_u8(kPacks.of4[keep]));
        vst1q_s32(sads + stay, vreinterpretq_s32_u8(kept));
        stay += __builtin_popcount(keep);
    }
    return stay;
}

constexpr Scanner kScanner{near, generic::reach, scan, narrow, 0.5, 2.0, 0.026};  // AVX2's costs, not measured

}  // namespace neon
}  // namespace dm2
