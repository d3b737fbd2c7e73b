// k nearest neighbours and all pairs under the combined distance: the plain exact loop.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "distance.hpp"
#include "parallel.hpp"

namespace dm2 {

constexpr std::ptrdiff_t kQueryBlock = 16;  // queries that share one read of the rows
constexpr std::ptrdiff_t kRowBlock = 32;    // rows kept in cache while those queries visit them

// Rows that those queries visit in a fraction of a second.
inline std::ptrdiff_t rows_together(std::ptrdiff_t d) { return std::max<std::ptrdiff_t>(kRowBlock, (1 << 27) / d); }

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

// The running best k of all queries in the caller's memory, (q, k), ascending by (distance, id), so that no visiting
// order can change the result and equal distances keep the lower id. Empty places are (inf, largest id). Between open()
// and close() each query's part is a max-heap instead.
template <class T>
struct Running {
    std::ptrdiff_t queries, k;
    T* distances;
    std::int64_t* ids;

    T worst(std::ptrdiff_t query) const { return distances[query * k]; }
    std::int64_t worst_id(std::ptrdiff_t query) const { return ids[query * k]; }

    void insert(std::ptrdiff_t query, T distance, std::int64_t id) const {
        T* d = distances + query * k;
        std::int64_t* i = ids + query * k;
        if (!before(distance, id, d[0], i[0])) return;
        std::ptrdiff_t at = 0;
        for (std::ptrdiff_t child = 1; child < k; child = 2 * at + 1) {
            if (child + 1 < k && before(d[child], i[child], d[child + 1], i[child + 1])) ++child;
            if (!before(distance, id, d[child], i[child])) break;
            d[at] = d[child];
            i[at] = i[child];
            at = child;
        }
        d[at] = distance;
        i[at] = id;
    }

    void open(int num_threads) const {
        parallel_blocks(queries, 256, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
            for (std::ptrdiff_t query = first; query < first + count; ++query) {
                std::reverse(distances + query * k, distances + (query + 1) * k);
                std::reverse(ids + query * k, ids + (query + 1) * k);
            }
        });
    }
    void close(int num_threads) const {
        parallel_blocks(queries, 256, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
            std::vector<std::pair<T, std::int64_t>> sorted(static_cast<std::size_t>(k));
            for (std::ptrdiff_t query = first; query < first + count; ++query) {
                for (std::ptrdiff_t r = 0; r < k; ++r) sorted[r] = {distances[query * k + r], ids[query * k + r]};
                std::sort(sorted.begin(), sorted.end());
                for (std::ptrdiff_t r = 0; r < k; ++r)
                    std::tie(distances[query * k + r], ids[query * k + r]) = sorted[r];
            }
        });
    }

private:
    static bool before(T distance, std::int64_t id, T other, std::int64_t other_id) {
        return distance < other || (distance == other && id < other_id);
    }
};

// Update the running best of the queries with the rows; a row whose id is the query's own is left out. The rows come in
// parts, so that report(part done) is called several times a second.
template <class T, class Report>
void plain_knn(const Rows<T>& queries, const std::int64_t* query_ids, const Rows<T>& rows, const std::int64_t* row_ids,
               const Running<T>& best, T w1, T w2, int num_threads, const Report& report) {
    const std::ptrdiff_t step = rows_together(rows.d);
    best.open(num_threads);
    for (std::ptrdiff_t start = 0; start < rows.n; start += step) {
        const Rows<T> part = rows.part(start, std::min(step, rows.n - start));
        parallel_blocks(
            queries.n, kQueryBlock, num_threads,
            [&](std::ptrdiff_t first, std::ptrdiff_t count) {
                for_each_tile(queries, first, count, part, w1, w2,
                              [&](std::ptrdiff_t i, std::ptrdiff_t j, std::ptrdiff_t n, const T* tile) {
                                  for (std::ptrdiff_t t = 0; t < n; ++t)
                                      if (tile[t] <= best.worst(i) && row_ids[start + j + t] != query_ids[i])
                                          best.insert(i, tile[t], row_ids[start + j + t]);
                              });
            },
            [&](double done) { report((start + done * part.n) / static_cast<double>(rows.n)); });
    }
    best.close(num_threads);
}

// plain_knn for queries that are the rows: each distance is computed once and serves both of its rows.
template <class T, class Report>
void mutual_knn(const Rows<T>& rows, const std::int64_t* ids, const Running<T>& best, T w1, T w2, int num_threads,
                const Report& report) {
    constexpr std::ptrdiff_t kSide = 8 * kQueryBlock;
    const std::ptrdiff_t blocks = (rows.n + kSide - 1) / kSide, pairs = (blocks + 1) / 2;
    const std::vector<T> ones(kSide, T(1));
    best.open(num_threads);
    // The k-th best of each row. (distance, id) only falls; the id is written first and read last, so that a distance is
    // never seen with an id that is too low for it.
    std::vector<std::atomic<T>> worst(static_cast<std::size_t>(rows.n));
    std::vector<std::atomic<std::int64_t>> worst_id(worst.size());
    std::vector<std::mutex> locks(static_cast<std::size_t>(blocks));
    const auto publish = [&](std::ptrdiff_t i) {
        worst_id[i].store(best.worst_id(i), std::memory_order_relaxed);
        worst[i].store(best.worst(i), std::memory_order_release);
    };
    for (std::ptrdiff_t i = 0; i < rows.n; ++i) publish(i);
    const auto offer = [&](std::ptrdiff_t i, T distance, std::int64_t id) {
        const T most = worst[i].load(std::memory_order_acquire);
        if (distance > most || (distance == most && id > worst_id[i].load(std::memory_order_relaxed))) return;
        const std::lock_guard<std::mutex> lock(locks[i / kSide]);
        best.insert(i, distance, id);
        publish(i);
    };
    const auto tile = [&](std::ptrdiff_t block, std::ptrdiff_t other) {
        const std::ptrdiff_t start = other * kSide, end = std::min((block + 1) * kSide, rows.n);
        Rows<T> part = rows.part(start, std::min(kSide, rows.n - start));
        std::vector<T> read;
        if (!rows.in_place()) {  // converted once for the whole block
            read.resize(static_cast<std::size_t>(part.n * padded(rows.d)));
            part.read(0, part.n, read.data());
            part = {read.data(), part.n, rows.d, padded(rows.d), ones.data()};
        }
        for (std::ptrdiff_t first = block * kSide; first < end; first += kQueryBlock)
            for_each_tile(rows, first, std::min(kQueryBlock, end - first), part, w1, w2,
                          [&](std::ptrdiff_t i, std::ptrdiff_t j, std::ptrdiff_t n, const T* distances) {
                              for (std::ptrdiff_t t = 0; t < n; ++t) {
                                  const std::ptrdiff_t row = start + j + t;
                                  if (row <= i || ids[row] == ids[i]) continue;
                                  offer(i, distances[t], ids[row]);
                                  offer(row, distances[t], ids[i]);
                              }
                          });
    };
    // The triangle of tiles as a rectangle: line r holds the tiles of block r, then those of block `last`.
    parallel_blocks(
        pairs * (blocks + 1), 1, num_threads,
        [&](std::ptrdiff_t t, std::ptrdiff_t) {
            const std::ptrdiff_t r = t / (blocks + 1), c = t % (blocks + 1), last = blocks - 1 - r;
            if (c < blocks - r)
                tile(r, r + c);
            else if (last != r)
                tile(last, c - 1);
        },
        report);
    best.close(num_threads);
}

// All distances, out: (queries.n, rows.n). The rows come in parts, as in plain_knn.
template <class T, class Report>
void pairwise(const Rows<T>& queries, const Rows<T>& rows, T w1, T w2, T* out, int num_threads, const Report& report) {
    const std::ptrdiff_t step = rows_together(rows.d);
    for (std::ptrdiff_t start = 0; start < rows.n; start += step) {
        const Rows<T> part = rows.part(start, std::min(step, rows.n - start));
        parallel_blocks(
            queries.n, kQueryBlock, num_threads,
            [&](std::ptrdiff_t first, std::ptrdiff_t count) {
                for_each_tile(queries, first, count, part, w1, w2,
                              [&](std::ptrdiff_t i, std::ptrdiff_t j, std::ptrdiff_t n, const T* tile) {
                                  std::copy(tile, tile + n, out + i * rows.n + start + j);
                              });
            },
            [&](double done) { report((start + done * part.n) / static_cast<double>(rows.n)); });
    }
}

}  // namespace dm2
