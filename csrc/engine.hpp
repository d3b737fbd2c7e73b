// k nearest neighbours by exact filters: codes drop nearly all pairs, the rest meet the distance of the plain loop.
#pragma once

#include <atomic>
#include <bitset>
#include <memory>
#include <mutex>

#include "knn.hpp"
#include "levels.hpp"
#include "order.hpp"

namespace dm2 {

// How many pairs met a check: that of codes of so many bytes, or the distance itself (0 bytes).
struct Stage {
    std::ptrdiff_t bytes;
    std::int64_t pairs;
};

// Call write(encoder, row) for each row, whose sums the encoder holds.
template <class T, class Report, class Write>
void encode_rows(const Rows<T>& rows, const std::vector<Fold>& folds, int num_threads, const Report& report,
                 const Write& write) {
    constexpr std::ptrdiff_t kTogether = 16;  // rows read at once: a cache line, where columns are dense
    parallel_blocks(
        rows.n, 256, num_threads,
        [&](std::ptrdiff_t first, std::ptrdiff_t n) {
            Encoder encoder(folds, rows.d);
            const std::ptrdiff_t width = padded(rows.d);
            std::vector<T> x(static_cast<std::size_t>(kTogether * width));
            for (std::ptrdiff_t r = 0; r < n; ++r) {
                if (r % kTogether == 0) rows.read(first + r, std::min(kTogether, n - r), x.data());
                encoder.read(&x[r % kTogether * width], rows.d);
                write(encoder, first + r);
            }
        },
        report);
}

// Rows in an order of their own, with their codes. A place is a position in that order; kBlock places are a block.
template <class T>
struct Side {
    const Rows<T>& rows;
    std::vector<std::ptrdiff_t> order;              // place -> row
    std::vector<std::uint8_t> near;                 // 32-byte codes, in groups
    std::vector<std::vector<std::uint8_t>> wide;    // longer codes, one after another
    std::vector<std::vector<float>> errors;         // [0] of near, [1 + w] of wide[w]
    std::vector<std::uint8_t> centres;              // mean 32-byte code of each block

    // Room for what `pack` wrote.
    Side(const Rows<T>& rows_, const std::vector<Grid>& grids)
        : rows(rows_), order(static_cast<std::size_t>(rows_.n)),
          near(static_cast<std::size_t>((rows_.n + kGroup - 1) / kGroup * kGroupBytes)),
          errors(grids.size(), std::vector<float>(static_cast<std::size_t>(rows_.n))) {
        for (std::size_t w = 1; w < grids.size(); ++w)
            wide.emplace_back(static_cast<std::size_t>(rows.n * grids[w].bytes));
    }

    template <class Report>
    Side(const Rows<T>& rows_, const std::vector<Fold>& folds, const std::vector<Grid>& grids, int num_threads,
         const Report& report)
        : rows(rows_), errors(grids.size(), std::vector<float>(static_cast<std::size_t>(rows_.n))) {
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows.n * kCode));
        std::vector<float> error(static_cast<std::size_t>(rows.n));
        encode_rows(rows, folds, num_threads, report, [&](Encoder& encoder, std::ptrdiff_t row) {
            error[row] = encoder.write(grids[0], &codes[row * kCode]);
        });
        order = tree_order(codes.data(), rows.n, num_threads, report);

        std::vector<std::ptrdiff_t> place(order.size());
        near.assign(static_cast<std::size_t>((rows.n + kGroup - 1) / kGroup * kGroupBytes), 0);
        for (std::ptrdiff_t p = 0; p < rows.n; ++p) {
            place[order[p]] = p;
            put_code(near.data(), p, &codes[order[p] * kCode]);
            errors[0][p] = error[order[p]];
        }
        find_centres();
        std::vector<std::uint8_t>().swap(codes);

        for (std::size_t w = 1; w < grids.size(); ++w)
            wide.emplace_back(static_cast<std::size_t>(rows.n * grids[w].bytes));
        if (wide.empty()) return;
        encode_rows(rows, folds, num_threads, report, [&](Encoder& encoder, std::ptrdiff_t row) {
            for (std::size_t w = 1; w < grids.size(); ++w)
                errors[w][place[row]] = encoder.write(grids[w], &wide[w - 1][place[row] * grids[w].bytes]);
        });
    }

    // Of rows that are elsewhere, from their codes, without errors.
    template <class Report>
    Side(const Rows<T>& rows_, const std::uint8_t* codes, const std::uint8_t* longer, std::ptrdiff_t bytes, int num_threads,
         const Report& report)
        : rows(rows_), order(tree_order(codes, rows_.n, num_threads, report)),
          near(static_cast<std::size_t>((rows_.n + kGroup - 1) / kGroup * kGroupBytes), 0) {
        wide.emplace_back(static_cast<std::size_t>(rows.n * bytes));
        for (std::ptrdiff_t p = 0; p < rows.n; ++p) {
            put_code(near.data(), p, codes + order[p] * kCode);
            std::copy_n(longer + order[p] * bytes, bytes, &wide[0][p * bytes]);
        }
        find_centres();
    }

    // All that is not found anew in a moment, as bytes.
    std::size_t packed_size() const {
        std::size_t size = order.size() * sizeof(order[0]) + near.size();
        for (const auto& codes : wide) size += codes.size();
        for (const auto& error : errors) size += error.size() * sizeof(float);
        return size;
    }
    void pack(std::uint8_t* out) const {
        const auto put = [&](const auto& values) {
            const std::size_t size = values.size() * sizeof(values[0]);
            if (size > 0) std::memcpy(out, values.data(), size);
            out += size;
        };
        put(order), put(near);
        for (const auto& codes : wide) put(codes);
        for (const auto& error : errors) put(error);
    }
    void unpack(const std::uint8_t* in) {
        const auto take = [&](auto& values) {
            const std::size_t size = values.size() * sizeof(values[0]);
            if (size > 0) std::memcpy(values.data(), in, size);
            in += size;
        };
        take(order), take(near);
        for (auto& codes : wide) take(codes);
        for (auto& error : errors) take(error);
        find_centres();
    }

    // Place p takes what place from[p] had.
    void reorder(const std::vector<std::ptrdiff_t>& from) {
        const auto take = [&](auto& values, std::size_t each) {
            auto moved = values;
            for (std::size_t p = 0; p < from.size(); ++p)
                std::copy_n(values.begin() + from[p] * each, each, moved.begin() + p * each);
            values.swap(moved);
        };
        std::vector<std::uint8_t> moved(near.size(), 0);
        for (std::ptrdiff_t p = 0; p < rows.n; ++p) {
            std::uint8_t code[kCode];
            get_code(near.data(), from[p], code);
            put_code(moved.data(), p, code);
        }
        near.swap(moved);
        std::vector<std::uint8_t>().swap(moved);
        for (std::vector<std::uint8_t>& codes : wide) take(codes, codes.size() / from.size());
        for (std::vector<float>& error : errors) take(error, 1);
        take(order, 1);
        find_centres();
    }

    std::ptrdiff_t blocks() const { return (rows.n + kBlock - 1) / kBlock; }
    std::ptrdiff_t count(std::ptrdiff_t block) const { return std::min(kBlock, rows.n - block * kBlock); }
    std::ptrdiff_t groups(std::ptrdiff_t block) const { return (count(block) + kGroup - 1) / kGroup; }
    const std::uint8_t* near_block(std::ptrdiff_t block) const { return near.data() + block * kBlock * kCode; }
    const std::uint8_t* centre(std::ptrdiff_t block) const { return centres.data() + block * kCode; }

private:
    void find_centres() {
        centres.clear();
        for (std::ptrdiff_t block = 0; block < blocks(); ++block) {
            std::int64_t sum[kCode] = {};
            std::uint8_t code[kCode];
            for (std::ptrdiff_t p = block * kBlock; p < block * kBlock + count(block); ++p) {
                get_code(near.data(), p, code);
                for (std::ptrdiff_t t = 0; t < kCode; ++t) sum[t] += code[t];
            }
            for (const std::int64_t s : sum) centres.push_back(static_cast<std::uint8_t>(s / count(block)));
        }
    }
};

// The rows of one block for `distance`: in place where they can be, otherwise converted, each at most once.
template <class T>
class Block {
public:
    Block(const Side<T>& side, std::ptrdiff_t block)
        : rows_(side.rows), order_(&side.order[block * kBlock]), width_(padded(rows_.d)),
          copies_(rows_.in_place() ? nullptr : new T[static_cast<std::size_t>(side.count(block) * width_)]) {}

    T distance_to(const T* x, std::ptrdiff_t place, T w1, T w2) {
        const std::ptrdiff_t row = order_[place];
        if (copies_ == nullptr) return distance(x, rows_.row(row), rows_.scale[row], rows_.d, w1, w2);
        T* copy = &copies_[place * width_];
        if (!read_[place]) rows_.read(row, 1, copy);
        read_[place] = true;
        return distance(x, copy, T(1), rows_.d, w1, w2);
    }
    void prefetch(std::ptrdiff_t place) const {
        if (!read_[place]) rows_.prefetch(order_[place]);
    }

private:
    const Rows<T>& rows_;
    const std::ptrdiff_t *order_, width_;
    std::unique_ptr<T[]> copies_;
    std::bitset<kBlock> read_;
};

template <class T>
class Engine {
public:
    // rows may be the same object as queries, or have a running best of their own: then each pair is met once and serves
    // both of its rows. A row whose id is negative is nobody's neighbour, unless the sides are one.
    Engine(const Side<T>& queries, const std::int64_t* query_ids, const Side<T>& rows, const std::int64_t* row_ids,
           const std::vector<Grid>& grids, const Bound& bound, T w1, T w2, const Running<T>& best,
           const Scanner& scanner, const Running<T>& best_of_rows = {0, 0, nullptr, nullptr})
        : same_(&queries == &rows), mutual_(same_ || best_of_rows.k > 0), queries_(queries, query_ids, best),
          others_(rows, row_ids, best_of_rows), rows_(same_ ? queries_ : others_), grids_(grids), bound_(bound),
          w1_(w1), w2_(w2), scanner_(scanner) {}

    template <class Report>
    void run(int num_threads, const Report& report) {
        run(0, queries_.side.blocks(), num_threads, report);
    }

    // Of two sides, only the blocks [first, last) of the queries.
    template <class Report>
    void run(std::ptrdiff_t first, std::ptrdiff_t last, int num_threads, const Report& report) {
        const auto prepare = [&](End& end, const End& others, std::ptrdiff_t from, std::ptrdiff_t to) {
            end.best.open(num_threads);
            parallel_blocks(
                to - from, 1, num_threads,
                [&](std::ptrdiff_t block, std::ptrdiff_t) { seed(end, others, from + block); },
                [&](double) { report(0.0); });
        };
        prepare(queries_, rows_, first, last);
        if (mutual_ && !same_) prepare(others_, queries_, 0, others_.side.blocks());
        // Near blocks first, by the distance of their centres, so that the thresholds fall early.
        const std::ptrdiff_t n = rows_.side.blocks(), q = last - first, all = same_ ? n * (n + 1) / 2 : q * n;
        std::vector<Tile> tiles;
        std::ptrdiff_t done = 0;
        for (std::ptrdiff_t diagonal = 0; diagonal < n; ++diagonal) {
            for (std::ptrdiff_t i = first; i < (same_ ? n - diagonal : last); ++i) {
                const std::ptrdiff_t j = same_ ? i + diagonal : (i + diagonal) % n;
                tiles.push_back({generic::sad(queries_.side.centre(i), rows_.side.centre(j), kCode),
                                 static_cast<std::int32_t>(i), static_cast<std::int32_t>(j)});
            }
            if (static_cast<std::ptrdiff_t>(tiles.size()) < kTiles && diagonal + 1 < n) continue;
            std::sort(tiles.begin(), tiles.end());
            const std::ptrdiff_t count = static_cast<std::ptrdiff_t>(tiles.size());
            parallel_blocks(
                count, 1, num_threads, [&](std::ptrdiff_t t, std::ptrdiff_t) { tile(tiles[t].i, tiles[t].j); },
                [&](double part) { report((done + part * count) / static_cast<double>(all)); });
            done += count;
            tiles.clear();
        }
        queries_.best.close(num_threads);
        if (mutual_ && !same_) others_.best.close(num_threads);
    }

    std::vector<Stage> stages() const {
        std::vector<Stage> stages;
        for (std::size_t level = 0; level < grids_.size(); ++level) stages.push_back({grids_[level].bytes, met_[level]});
        stages.push_back({0, met_[grids_.size()]});
        return stages;
    }

private:
    static constexpr std::ptrdiff_t kTiles = 1 << 21;  // sorted at a time

    // A side, and the running best of its rows if they want neighbours.
    struct End {
        const Side<T>& side;
        const std::int64_t* ids;
        const Running<T> best;
        std::vector<std::atomic<T>> thresholds;  // by place; a pair farther than both is of no use
        std::vector<std::mutex> locks;           // one for each block

        End(const Side<T>& side_, const std::int64_t* ids_, const Running<T>& best_)
            : side(side_), ids(ids_), best(best_), thresholds(static_cast<std::size_t>(best.k > 0 ? side.rows.n : 0)),
              locks(static_cast<std::size_t>(best.k > 0 ? side.blocks() : 0)) {}
    };

    struct Tile {
        std::int32_t distance, i, j;
        bool operator<(const Tile& other) const {
            return std::tie(distance, i, j) < std::tie(other.distance, other.i, other.j);
        }
    };

    // Limits of the places of a block at every level; a side that wants nothing has kNever as a.
    struct Limits {
        NearLimits near;
        Limit wide[kWideLevels][kBlock];

        Limits() { std::fill(near.a, near.a + kBlock, kNever), std::fill(near.e, near.e + kBlock, kNever); }
    };

    struct Pair {
        std::uint16_t i, j;
        std::int32_t sad;  // at the last level
    };

    // What the threshold of a place allows, in L1.
    double l1(const End& end, std::ptrdiff_t place) const {
        return bound_.l1(end.thresholds[place].load(std::memory_order_relaxed));
    }

    // The limits that the thresholds of now give; they stay safe, as thresholds only fall.
    void set_limits(const End& end, std::ptrdiff_t block, bool wants, Limits& limits) const {
        const std::ptrdiff_t first = block * kBlock, count = end.side.count(block);
        double reachable[kBlock];
        for (std::ptrdiff_t i = 0; wants && i < count; ++i) reachable[i] = l1(end, first + i);
        for (std::size_t level = 0; level < grids_.size(); ++level) {
            const float* error = &end.side.errors[level][first];
            const double per_step = 1.0 / static_cast<double>(grids_[level].step);
            for (std::ptrdiff_t i = 0; i < count; ++i) {
                const int most = level == 0 ? kFar : kMost, never = level == 0 ? kNever : -2 * kMost;
                const int a = wants ? Bound::reach(reachable[i] * per_step, error[i], most) : never;
                const int e = Bound::margin(error[i], most);
                if (level == 0) {
                    limits.near.a[i] = static_cast<std::int16_t>(a);
                    limits.near.e[i] = static_cast<std::int16_t>(e);
                } else {
                    limits.wide[level - 1][i] = {a, e};
                }
            }
        }
    }

    // The groups of block j that may hold a row that stays for a row of block i, for all of these. With a pivot code p,
    // SAD(x, y) >= SAD(x, p) - SAD(y, p): the pivot is the corner of the cube that lies from i towards j.
    void reach(std::ptrdiff_t block_i, std::ptrdiff_t block_j, const Limits& i, const Limits& j,
               std::uint32_t* bits) const {
        std::uint8_t pivot[kCode];
        for (std::ptrdiff_t t = 0; t < kCode; ++t)
            pivot[t] = queries_.side.centre(block_i)[t] > rows_.side.centre(block_j)[t] ? 0 : 255;
        std::int16_t to_i[kBlock], to_j[kBlock], most_e[kBlock / kGroup], most_a[kBlock / kGroup];
        scanner_.near(pivot, queries_.side.near_block(block_i), queries_.side.groups(block_i), to_i);
        scanner_.near(pivot, rows_.side.near_block(block_j), rows_.side.groups(block_j), to_j);
        std::fill(most_e, most_e + kBlock / kGroup, kNever);
        std::fill(most_a, most_a + kBlock / kGroup, kNever);
        for (std::ptrdiff_t p = 0; p < rows_.side.count(block_j); ++p) {
            most_e[p / kGroup] = std::max<std::int16_t>(most_e[p / kGroup], to_j[p] + j.near.e[p]);
            most_a[p / kGroup] = std::max<std::int16_t>(most_a[p / kGroup], to_j[p] + j.near.a[p]);
        }
        for (std::ptrdiff_t p = 0; p < queries_.side.count(block_i); ++p)
            bits[p] = scanner_.reach(most_e, most_a, to_i[p] - i.near.a[p], to_i[p] - i.near.e[p]);
    }

    // The pairs of two blocks that no level drops.
    void filter(std::ptrdiff_t block_i, std::ptrdiff_t block_j, std::vector<Pair>& pairs) {
        std::int64_t met[kWideLevels + 1] = {};
        Limits i, own;
        set_limits(queries_, block_i, true, i);
        const bool diagonal = same_ && block_i == block_j;
        if (!diagonal) set_limits(rows_, block_j, mutual_, own);
        const Limits& j = diagonal ? i : own;
        std::uint32_t bits[kBlock];
        reach(block_i, block_j, i, j, bits);
        const std::uint32_t groups = ~0u >> (kBlock / kGroup - rows_.side.groups(block_j));
        for (std::ptrdiff_t p = 0; p < queries_.side.count(block_i); ++p) {
            std::uint16_t list[kBlock + kSlack];
            std::int32_t sads[kBlock + kSlack];
            std::uint8_t code[kCode];
            get_code(queries_.side.near_block(block_i), p, code);
            met[0] += kGroup * static_cast<std::int64_t>(std::bitset<32>(bits[p] & groups).count());
            std::ptrdiff_t n = scanner_.scan(code, i.near.a[p], i.near.e[p], rows_.side.near_block(block_j),
                                             bits[p] & groups, j.near, list);
            if (rows_.side.wide.empty()) std::fill(sads, sads + n, 0);  // nothing to look at again later
            if (diagonal) n = std::remove_if(list, list + n, [&](std::uint16_t q) { return q <= p; }) - list;
            for (std::size_t w = 0; w < rows_.side.wide.size() && n > 0; ++w) {
                const std::ptrdiff_t bytes = grids_[w + 1].bytes;
                met[w + 1] += n;
                n = scanner_.narrow(&queries_.side.wide[w][(block_i * kBlock + p) * bytes],
                                    &rows_.side.wide[w][block_j * kBlock * bytes], bytes, i.wide[w][p], j.wide[w], list, n,
                                    sads);
            }
            for (std::ptrdiff_t r = 0; r < n; ++r) pairs.push_back({static_cast<std::uint16_t>(p), list[r], sads[r]});
            // the nearest codes first, so that the threshold falls before the others are looked at
            std::sort(pairs.end() - n, pairs.end(), [](const Pair& one, const Pair& other) { return one.sad < other.sad; });
        }
        for (std::size_t level = 0; level < grids_.size(); ++level) met_[level] += met[level];
    }

    // Whether a pair that passed with this SAD at the last level still may be of use to either row.
    bool stays(std::ptrdiff_t i, std::ptrdiff_t j, std::int32_t sad) const {
        const std::size_t last = grids_.size() - 1;
        const float e_i = queries_.side.errors[last][i], e_j = rows_.side.errors[last][j], step = grids_[last].step;
        return sad <= Bound::reach(l1(queries_, i) / step, e_i, kMost) + Bound::margin(e_j, kMost) ||
               (mutual_ && sad <= Bound::reach(l1(rows_, j) / step, e_j, kMost) + Bound::margin(e_i, kMost));
    }

    // Update a block of queries with a block of rows, and the other way round where each pair is met once.
    void tile(std::ptrdiff_t block_i, std::ptrdiff_t block_j) {
        std::vector<Pair> pairs;
        pairs.reserve(kBlock);
        filter(block_i, block_j, pairs);
        Block<T> rows(rows_.side, block_j);
        std::vector<T> x(static_cast<std::size_t>(padded(rows_.side.rows.d)));
        std::ptrdiff_t held = -1, exact = 0;
        for (std::size_t c = 0; c < pairs.size(); ++c) {
            if (c + 1 < pairs.size()) rows.prefetch(pairs[c + 1].j);
            const std::ptrdiff_t i = block_i * kBlock + pairs[c].i, j = block_j * kBlock + pairs[c].j;
            const std::ptrdiff_t query = queries_.side.order[i], row = rows_.side.order[j];
            if (!stays(i, j, pairs[c].sad)) continue;
            if (i != held) queries_.side.rows.read(query, 1, x.data());
            held = i;
            ++exact;
            const T d = rows.distance_to(x.data(), pairs[c].j, w1_, w2_);
            if (rows_.ids[row] == queries_.ids[query] || rows_.ids[row] < 0) continue;
            offer(queries_, i, d, rows_.ids[row]);
            if (mutual_) offer(rows_, j, d, queries_.ids[query]);
        }
        met_[grids_.size()] += exact;
    }

    // Only one block is locked at a time. A threshold only falls; one that is read late is larger and drops less.
    static void offer(End& end, std::ptrdiff_t place, T distance, std::int64_t id) {
        std::atomic<T>& threshold = end.thresholds[place];
        if (distance > threshold.load(std::memory_order_relaxed)) return;
        const std::lock_guard<std::mutex> lock(end.locks[place / kBlock]);
        const std::ptrdiff_t row = end.side.order[place];
        end.best.insert(row, distance, id);
        if (end.best.worst(row) < threshold.load(std::memory_order_relaxed))
            threshold.store(end.best.worst(row), std::memory_order_relaxed);
    }

    // First thresholds of a block: the k-th best of what is held, or of the rows with the nearest codes in the nearest
    // blocks of the others. Those rows are not kept: they come again in their tiles. Where each of two sides has met its
    // own rows before, what is held is good enough.
    void seed(End& end, const End& others, std::ptrdiff_t block) {
        const std::ptrdiff_t k = end.best.k;
        if (mutual_ && !same_ && hold(end, block)) return;
        const std::ptrdiff_t n_blocks = std::min(others.side.blocks(), 1 + 4 * k / kBlock);
        std::vector<std::pair<std::int32_t, std::ptrdiff_t>> nearest;
        for (std::ptrdiff_t j = 0; j < others.side.blocks(); ++j)
            nearest.emplace_back(generic::sad(end.side.centre(block), others.side.centre(j), kCode), j);
        std::partial_sort(nearest.begin(), nearest.begin() + n_blocks, nearest.end());

        const std::ptrdiff_t share = k / n_blocks + 2;  // of one block; one of them may be the query itself
        const std::ptrdiff_t count = end.side.count(block);
        std::vector<T> x(static_cast<std::size_t>(padded(others.side.rows.d)));
        std::vector<std::vector<T>> found(static_cast<std::size_t>(count));
        for (std::ptrdiff_t b = 0; b < n_blocks; ++b) {
            const std::ptrdiff_t j = nearest[b].second;
            Block<T> rows(others.side, j);
            for (std::ptrdiff_t p = 0; p < count; ++p) {
                const std::ptrdiff_t place = block * kBlock + p, query = end.side.order[place];
                end.side.rows.read(query, 1, x.data());
                std::uint32_t keys[kBlock];
                const std::ptrdiff_t n = closest(end.side, place, others.side, j, share, keys);
                for (std::ptrdiff_t r = 0; r < n; ++r) {
                    const std::int64_t id = others.ids[others.side.order[j * kBlock + keys[r]]];
                    if (id < 0 || id == end.ids[query]) continue;
                    const T distance = rows.distance_to(x.data(), keys[r], w1_, w2_);
                    if (!std::isnan(distance)) found[p].push_back(distance);  // NaN has no place in an order
                }
            }
        }
        for (std::ptrdiff_t p = 0; p < count; ++p) {
            const std::ptrdiff_t place = block * kBlock + p;
            T threshold = end.best.worst(end.side.order[place]);
            if (static_cast<std::ptrdiff_t>(found[p].size()) >= k) {
                std::nth_element(found[p].begin(), found[p].begin() + k - 1, found[p].end());
                threshold = std::min(threshold, found[p][k - 1]);
            }
            end.thresholds[place].store(threshold, std::memory_order_relaxed);
        }
    }

    // Take what a block holds for its thresholds; whether each of its rows holds k.
    static bool hold(End& end, std::ptrdiff_t block) {
        bool all = true;
        for (std::ptrdiff_t place = block * kBlock; place < block * kBlock + end.side.count(block); ++place) {
            const T worst = end.best.worst(end.side.order[place]);
            end.thresholds[place].store(worst, std::memory_order_relaxed);
            all = all && worst < std::numeric_limits<T>::infinity();
        }
        return all;
    }

    // Rows of a block with the nearest codes, up to `share`: 4 times as many by the 32-byte codes, of these by the longest.
    std::ptrdiff_t closest(const Side<T>& side, std::ptrdiff_t place, const Side<T>& others, std::ptrdiff_t block,
                           std::ptrdiff_t share, std::uint32_t* keys) const {
        const std::ptrdiff_t count = others.count(block);
        std::uint8_t code[kCode];
        std::int16_t near[kBlock];
        get_code(side.near.data(), place, code);
        scanner_.near(code, others.near_block(block), others.groups(block), near);
        for (std::ptrdiff_t j = 0; j < count; ++j)
            keys[j] = static_cast<std::uint32_t>(near[j]) * kBlock + static_cast<std::uint32_t>(j);
        std::ptrdiff_t n = std::min(count, others.wide.empty() ? share : 4 * share);
        if (n < count) std::nth_element(keys, keys + n, keys + count);
        for (std::ptrdiff_t r = 0; r < n; ++r) keys[r] %= kBlock;
        if (others.wide.empty() || n <= share) return std::min(n, share);

        std::uint16_t list[kBlock + kSlack];
        std::int32_t sads[kBlock + kSlack];
        std::pair<std::int32_t, std::uint32_t> ranked[kBlock];
        std::copy(keys, keys + n, list);
        const std::ptrdiff_t bytes = grids_.back().bytes;
        static const std::vector<Limit> all(kBlock, {kMost, kMost});
        scanner_.narrow(&side.wide.back()[place * bytes], &others.wide.back()[block * kBlock * bytes], bytes, all[0],
                        all.data(), list, n, sads);
        for (std::ptrdiff_t r = 0; r < n; ++r) ranked[r] = {sads[r], keys[r]};
        std::nth_element(ranked, ranked + share, ranked + n);
        for (std::ptrdiff_t r = 0; r < share; ++r) keys[r] = ranked[r].second;
        return share;
    }

    const bool same_, mutual_;  // the sides are one; each pair serves both of its rows
    End queries_, others_;
    End& rows_;
    const std::vector<Grid>& grids_;
    const Bound bound_;
    const T w1_, w2_;
    const Scanner& scanner_;
    std::atomic<std::int64_t> met_[kWideLevels + 2]{};
};

}  // namespace dm2
