// Which L1 distance, and which distance between codes, a pair may have if its computed distance is to be at most D.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

namespace dm2 {

constexpr double kUnit = 1.0 / (1 << 24);  // float32's relative rounding error

// Why no filter can drop a neighbour. x, y are rows as `sums` reads them, A and L their exact L1 and L2 distances,
// D^ = fl(fl(w1 A^) + fl(w2 L^)) what `combine` returns, u = 2^-24 (2^-53), n = ceil(d / 16), w1, w2 >= 0, no FMA,
// gradual underflow. Valid while (n + 6) u < 0.01.
//
// 1. All summands are >= 0, and a term meets one subtraction, n - 1 additions and a tree of 4:
//        A^ >= A (1 - u)^(n + 4);  a square rounds twice more and may underflow by 2^-150 (2^-1075) each, hence
//        L^ >= (L (1 - u)^((n + 6) / 2) - sqrt(d) 2^-75)(1 - u);  two products and one sum:
//        D^ >= (w1 A + w2 L)(1 - u)^(n + 6) - eta,  eta = w2 sqrt(d) 2^-75 + 2^-149  (2^-537 and 2^-1074 in double).
//    Rows of one direction meet this bound: without the factor, pairs of 4096 dimensions are dropped at their own
//    distance (tests/operations/test_engine.py, test_the_bound_is_tight). With fewer, it is worth less than a step.
// 2. L >= A / sqrt(d) and (1 - u)^-N <= 1 + 1.01 N u for N u < 0.01. So D^ <= D implies
//        A <= T(D) = (D + eta)(1 + 1.01 (n + 6) u) / (w1 + w2 / sqrt(d)).
// 3. A group sum G_j adds up the dimensions of group j with signs +-1, each dimension in one group: |G_j(x) - G_j(y)|
//    <= the group's part of A. Its unit value is v_j = clip((G_j - o_j) / s, 0, 255), and clipping is 1-Lipschitz, so
//    sum_j |v_j(x) - v_j(y)| <= A / s whatever was clipped; o_j cancels. Only what is rounded after the clip is an
//    error. A code is q = an integer near the float v^, and E >= sum_j |v_j - q_j| in units of s consists of
//        sum_j |v^_j - q_j|, added up in float32 by `sums`: times 1 + 1.01 (n + 6) 2^-24 for the exact sum;
//        |v_j - v^_j| <= 255 * 4 * 2^-24 < 2^-14 each (difference, 1 / s, product), for the exact G^_j;
//        the rounding of the float group sums after h additions: sum_j |G_j - G^_j| <= 1.03 h 2^-24 |x|_1, and one h
//        more for a double row read as float32 and for |x|_1 being a float32 sum. Underflow is below 2^-14 as s >= 2^-60.
// 4. The triangle inequality: SAD(q(x), q(y)) <= A / s + E(x) + E(y). So a pair may be dropped only if
//        SAD > T / s + E(x) + E(y), and as SAD is an integer, if SAD > a(x) + e(y) with
//        a = floor((T / s + E)(1 + 2^-20)), e = ceil(E (1 + 2^-20)), since floor(p + q) <= floor(p) + ceil(q);
//    2^-20 covers the roundings of T, of T / s and of E stored as a float. A pair that two rows want is dropped only if
//    both drop it. What is too large for an integer, or not a number, is replaced by a limit that keeps every pair.
struct Bound {
    double eta, rounding, weight;

    template <class T>
    static bool holds(std::ptrdiff_t d, T w1, T w2) {
        return w1 >= 0 && w2 >= 0 && w1 + w2 > 0 && (d / 16 + 7) * unit<T>() < 0.01;
    }

    template <class T>
    static Bound of(std::ptrdiff_t d, T w1, T w2) {
        const double root = std::sqrt(static_cast<double>(d)), tiny = std::numeric_limits<T>::denorm_min();
        const double underflow = sizeof(T) == 4 ? std::ldexp(1.0, -75) : std::ldexp(1.0, -537);
        return {w2 * root * underflow + tiny, rounded<T>(d), (w1 + w2 / root) * (1 - std::ldexp(1.0, -50))};
    }

    // 1 + 1.01 (n + 6) u, for L1 of d dimensions.
    template <class T>
    static double rounded(std::ptrdiff_t d) {
        return 1 + 1.01 * static_cast<double>((d + 15) / 16 + 6) * unit<T>();
    }

    // T(D).
    double l1(double distance) const { return (distance + eta) * rounding / weight; }

    // E of a row in steps: the sum of |v^ - q| over a code, h additions in each group sum, and the row's L1 norm.
    static double error(float residual, std::ptrdiff_t bytes, std::ptrdiff_t additions, float norm, float step) {
        return residual * rounded<float>(bytes) + static_cast<double>(bytes) / (1 << 14) +
               1.03 * static_cast<double>(additions + 1) * kUnit * norm / step;
    }

    // a and e, at most `most`; l1 is in steps.
    static int reach(double l1, float error, int most) {
        const double a = (l1 + error) * kUpward;
        return a < most ? static_cast<int>(a) : most;
    }
    static int margin(float error, int most) {
        const double e = std::ceil(error * kUpward);
        return e < most ? static_cast<int>(e) : most;
    }

private:
    static constexpr double kUpward = 1 + 1.0 / (1 << 20);
    template <class T>
    static constexpr double unit() {
        return std::numeric_limits<T>::epsilon() / 2;
    }
};

}  // namespace dm2
