// An order of rows in which near rows are neighbours: a balanced tree of 2-means splits of their 32-byte codes.
#pragma once

#include <array>
#include <utility>

#include "scan.hpp"

namespace dm2 {

using Centre = std::array<std::int32_t, kCode>;

DM2_CLONES inline std::int32_t dot(const std::uint8_t* code, const std::int32_t* weights) {
    std::int32_t sum = 0;
    for (std::ptrdiff_t t = 0; t < kCode; ++t) sum += code[t] * weights[t];
    return sum;
}

// The direction between two centres of the rows, after a few steps of 2-means on at most 256 of them.
template <class Code>
Centre direction(std::ptrdiff_t n, const Code& code) {
    const std::ptrdiff_t step = (n + 255) / 256;
    const auto far_from = [&](const std::uint8_t* from) {
        std::ptrdiff_t farthest = 0;
        std::int32_t largest = -1;
        for (std::ptrdiff_t i = 0; i < n; i += step) {
            const std::int32_t distance = generic::sad(code(i), from, kCode);
            if (distance > largest) largest = distance, farthest = i;
        }
        return code(farthest);
    };
    const std::uint8_t *one = far_from(code(0)), *other = far_from(one);
    Centre between, centre[2];
    std::int32_t middle = 0;  // of the dot products of both centres
    for (std::ptrdiff_t t = 0; t < kCode; ++t) {
        between[t] = one[t] - other[t];
        middle += between[t] * (one[t] + other[t]) / 2;
    }
    for (int round = 0; round < 3; ++round) {
        std::int32_t count[2] = {};
        centre[0].fill(0), centre[1].fill(0);
        for (std::ptrdiff_t i = 0; i < n; i += step) {
            const std::uint8_t* row = code(i);
            const int side = dot(row, between.data()) < middle;
            ++count[side];
            for (std::ptrdiff_t t = 0; t < kCode; ++t) centre[side][t] += row[t];
        }
        if (count[0] == 0 || count[1] == 0) break;
        middle = 0;
        for (std::ptrdiff_t t = 0; t < kCode; ++t) {
            const std::int32_t a = centre[0][t] / count[0], b = centre[1][t] / count[1];
            between[t] = a - b;
            middle += between[t] * (a + b) / 2;
        }
    }
    return between;
}

// The rows in order. Splits fall on multiples of kBlock, below that of kGroup, so tiles and groups are tree nodes.
template <class Report>
std::vector<std::ptrdiff_t> tree_order(const std::uint8_t* codes, std::ptrdiff_t n, int num_threads,
                                       const Report& report) {
    using Node = std::pair<std::ptrdiff_t, std::ptrdiff_t>;  // first, count
    std::vector<std::pair<std::int32_t, std::ptrdiff_t>> rows(static_cast<std::size_t>(n));  // (key, row)
    for (std::ptrdiff_t i = 0; i < n; ++i) rows[i] = {0, i};
    std::vector<Node> nodes{{0, n}}, halves;
    while (!nodes.empty()) {
        parallel_blocks(
            static_cast<std::ptrdiff_t>(nodes.size()), 1, num_threads,
            [&](std::ptrdiff_t node, std::ptrdiff_t) {
                const auto first = rows.begin() + nodes[node].first;
                const std::ptrdiff_t count = nodes[node].second, unit = count > kBlock ? kBlock : kGroup;
                const Centre between =
                    direction(count, [&](std::ptrdiff_t i) { return codes + first[i].second * kCode; });
                for (auto row = first; row != first + count; ++row)
                    row->first = dot(codes + row->second * kCode, between.data());
                std::nth_element(first, first + (count / 2 + unit - 1) / unit * unit, first + count);
            },
            report);
        halves.clear();
        for (const Node& node : nodes) {
            const std::ptrdiff_t unit = node.second > kBlock ? kBlock : kGroup;
            const std::ptrdiff_t left = (node.second / 2 + unit - 1) / unit * unit;
            for (const Node& half : {Node(node.first, left), Node(node.first + left, node.second - left)})
                if (half.second > kGroup) halves.push_back(half);
        }
        nodes.swap(halves);
    }
    std::vector<std::ptrdiff_t> order(static_cast<std::size_t>(n));
    for (std::ptrdiff_t i = 0; i < n; ++i) order[i] = rows[i].second;
    return order;
}

}  // namespace dm2
