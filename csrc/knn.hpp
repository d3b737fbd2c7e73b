// k nearest neighbours and all pairs under the combined distance: the plain exact loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "distance.hpp"
#include "parallel.hpp"

namespace dm2 {

constexpr std::ptrdiff_t kQueryBlock = 16;  // queries that share one read of the rows
constexpr std::ptrdiff_t kRowBlock = 32;    // rows kept in cache while those queries visit them

// Call visit(i, j, distances of query i to rows j...) for queries [first, first + count) against all rows.
template <class T, class Visit>
void for_each_tile(const Rows<T>& queries, std::ptrdiff_t first, std::ptrdiff_t count, const Rows<T>& rows, T w1, T w2,
                   const Visit& visit) {
    const std::ptrdiff_t width = padded(rows.d);
    std::vector<T> x(static_cast<std::size_t>(count * width)), y(static_cast<std::size_t>(kRowBlock * width));
    T tile[kRowBlock];
    queries.read(first, count, x.data());
    for (std::ptrdiff_t j = 0; j < rows.n; j += kRowBlock) {
        const std::ptrdiff_t n = std::min(kRowBlock, rows.n - j);
        rows.read(j, n, y.data());
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            distances(x.data() + i * width, y.data(), n, width, w1, w2, tile);
            visit(first + i, j, n, tile);
        }
    }
}

// The best k so far of one query: a max-heap ordered by (distance, id), so that no visiting order can change the result
// and equal distances keep the lower id.
template <class T>
using Best = std::vector<std::pair<T, std::int64_t>>;

template <class T>
void insert(Best<T>& best, T distance, std::int64_t id) {
    const std::pair<T, std::int64_t> candidate(distance, id);
    if (!(candidate < best.front())) return;
    std::pop_heap(best.begin(), best.end());
    best.back() = candidate;
    std::push_heap(best.begin(), best.end());
}

// Update the running best k (best_distances, best_ids: (q, k), ascending by (distance, id); empty places are
// (inf, largest id)) of the queries with the rows. A row whose id is the query's own is left out.
template <class T>
void knn(const Rows<T>& queries, const std::int64_t* query_ids, const Rows<T>& rows, const std::int64_t* row_ids,
         std::ptrdiff_t k, T w1, T w2, T* best_distances, std::int64_t* best_ids, int num_threads) {
    parallel_blocks(queries.n, kQueryBlock, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        std::vector<Best<T>> best(static_cast<std::size_t>(count));
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            Best<T>& heap = best[static_cast<std::size_t>(i)];
            for (std::ptrdiff_t r = 0; r < k; ++r)
                heap.emplace_back(best_distances[(first + i) * k + r], best_ids[(first + i) * k + r]);
            std::make_heap(heap.begin(), heap.end());
        }
        for_each_tile(queries, first, count, rows, w1, w2,
                      [&](std::ptrdiff_t i, std::ptrdiff_t j, std::ptrdiff_t n, const T* tile) {
                          Best<T>& heap = best[static_cast<std::size_t>(i - first)];
                          for (std::ptrdiff_t t = 0; t < n; ++t)
                              if (tile[t] <= heap.front().first && row_ids[j + t] != query_ids[i])
                                  insert(heap, tile[t], row_ids[j + t]);
                      });
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            Best<T>& heap = best[static_cast<std::size_t>(i)];
            std::sort_heap(heap.begin(), heap.end());
            for (std::ptrdiff_t r = 0; r < k; ++r) {
                best_distances[(first + i) * k + r] = heap[static_cast<std::size_t>(r)].first;
                best_ids[(first + i) * k + r] = heap[static_cast<std::size_t>(r)].second;
            }
        }
    });
}

// All distances, out: (queries.n, rows.n).
template <class T>
void pairwise(const Rows<T>& queries, const Rows<T>& rows, T w1, T w2, T* out, int num_threads) {
    parallel_blocks(queries.n, kQueryBlock, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        for_each_tile(queries, first, count, rows, w1, w2,
                      [&](std::ptrdiff_t i, std::ptrdiff_t j, std::ptrdiff_t n, const T* tile) {
                          std::copy(tile, tile + n, out + i * rows.n + j);
                      });
    });
}

}  // namespace dm2
