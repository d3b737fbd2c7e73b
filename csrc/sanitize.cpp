// The searches without Python, for the sanitizers: small problems of several kinds against plain loops.
#include <cstdio>

#include "nearest.hpp"
#include "graph.hpp"

namespace {

using Ids = std::vector<std::int64_t>;

std::int64_t wrong = 0;

template <class T>
std::vector<T> make_rows(std::ptrdiff_t n, std::ptrdiff_t d, int kind, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::vector<double> centres(static_cast<std::size_t>(5 * d));
    for (double& value : centres) value = normal(random);
    std::vector<T> rows;
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        const std::ptrdiff_t centre = random() % 5;
        for (std::ptrdiff_t t = 0; t < d; ++t)
            rows.push_back(static_cast<T>(kind == 0   ? normal(random)
                                          : kind == 1 ? std::max(0.0, centres[centre * d + t] + 0.2 * normal(random))
                                          : kind == 2 ? centres[centre * d + t]
                                          : i == 0    ? 1e30
                                                      : 1e-30 * normal(random)));
    }
    return rows;
}

template <class T>
struct Best {
    std::vector<T> distances;
    Ids ids;

    Best(std::ptrdiff_t n, std::ptrdiff_t k)
        : distances(static_cast<std::size_t>(n * k), std::numeric_limits<T>::infinity()),
          ids(distances.size(), std::numeric_limits<std::int64_t>::max()) {}
    bool operator==(const Best& other) const { return distances == other.distances && ids == other.ids; }
};

template <class T>
void compare(std::ptrdiff_t m, std::ptrdiff_t d, std::ptrdiff_t k, int kind, const dm2::Scanner* scanner) {
    const std::vector<T> x = make_rows<T>(m, d, kind, 1), other = make_rows<T>(m / 3, d, kind, 2), ones(x.size(), T(1));
    Ids ids(static_cast<std::size_t>(m)), none(other.size(), -1);
    for (std::ptrdiff_t i = 0; i < m; ++i) ids[i] = i;
    std::vector<T> columns(x.size());
    for (std::ptrdiff_t i = 0; i < m; ++i)
        for (std::ptrdiff_t t = 0; t < d; ++t) columns[t * m + i] = x[i * d + t];
    for (const bool self : {true, false}) {
        const dm2::Rows<T> asked{other.data(), m / 3, d, d, ones.data()};
        const dm2::Rows<T> rows = self ? dm2::Rows<T>{x.data(), m, d, d, ones.data()}
                                       : dm2::Rows<T>{columns.data(), m, d, 1, ones.data(), 1, m};
        const dm2::Rows<T>& queries = self ? rows : asked;
        const dm2::Problem<T> problem{queries, self ? ids.data() : none.data(), rows, ids.data(), T(0.5), T(0.5)};
        Best<T> plain(queries.n, k), fast(queries.n, k);
        dm2::Choice choice{true, {}, scanner};
        dm2::knn(problem, {queries.n, k, plain.distances.data(), plain.ids.data()}, choice, 2, [](double) {});
        choice = {false, std::vector<std::ptrdiff_t>{64, dm2::code_bytes(d)}, scanner};
        dm2::knn(problem, {queries.n, k, fast.distances.data(), fast.ids.data()}, choice, 4, [](double) {});
        wrong += !(plain == fast);
        Best<T> chosen(queries.n, k);
        choice.levels.reset();
        dm2::knn(problem, {queries.n, k, chosen.distances.data(), chosen.ids.data()}, choice, 3, [](double) {});
        wrong += !(plain == chosen);
    }
}

template <class T>
void compare_nearest(std::ptrdiff_t m, std::ptrdiff_t d) {
    const std::vector<T> x = make_rows<T>(m, d, 0, 1), points = make_rows<T>(9, d, 0, 2);
    std::vector<T> fast(static_cast<std::size_t>(m), std::numeric_limits<T>::infinity()), plain(fast);
    dm2::lower_to_nearest<T>(x.data(), m, d, points.data(), 9, d, d, fast.data(), 3, [](double) {});
    for (std::ptrdiff_t i = 0; i < m; ++i)
        for (std::ptrdiff_t j = 0; j < 9; ++j) {
            double sum = 0;
            for (std::ptrdiff_t t = 0; t < d; ++t) {
                const double difference = static_cast<double>(x[i * d + t]) - static_cast<double>(points[j * d + t]);
                sum += difference * difference;
            }
            plain[i] = std::min(plain[i], static_cast<T>(sum));
        }
    for (std::ptrdiff_t i = 0; i < m; ++i) wrong += !(std::abs(fast[i] - plain[i]) <= T(1e-5) * plain[i]);
}

// An approximate graph is the same for all threads, and exact queries of the same index equal the plain loop.
template <class T>
void compare_graph(std::ptrdiff_t m, std::ptrdiff_t d, int kind, const dm2::Scanner* scanner) {
    const std::vector<T> x = make_rows<T>(m, d, kind, 1), ones(x.size(), T(1));
    const dm2::Rows<T> rows{x.data(), m, d, d, ones.data()};
    const std::ptrdiff_t k = 5;
    Ids ids(static_cast<std::size_t>(m)), places(ids.size());
    for (std::ptrdiff_t i = 0; i < m; ++i) ids[i] = i;
    std::vector<Best<T>> found;
    for (const int num_threads : {1, 4}) {
        const dm2::Index<T> index(rows, ids.data(), T(0.5), T(0.5), *scanner, num_threads, [](double) {});
        for (std::ptrdiff_t p = 0; p < m; ++p) places[p] = p;
        dm2::Graph<T> graph(index, ids.data(), 7, 0, m);
        std::vector<std::uint32_t> frozen(static_cast<std::size_t>(m * 7));
        for (const std::ptrdiff_t rank : {0, 1}) {
            graph.probe(rank, 2 * rank + 1, num_threads, [](double) {});
            graph.freeze(frozen.data());
            graph.join(frozen.data(), num_threads, [](double) {});
        }
        found.emplace_back(m, k);
        const std::vector<std::ptrdiff_t>& order = index.side->order;
        graph.nearest(places.data(), Ids(order.begin(), order.end()).data(), m, k, found.back().distances.data(),
                      found.back().ids.data(), num_threads, [](double) {});
        Best<T> plain(9, k), fast(9, k);
        const dm2::Rows<T> some = rows.part(0, 9);
        dm2::plain_knn<T>(some, ids.data(), rows, ids.data(), {9, k, plain.distances.data(), plain.ids.data()}, T(0.5),
                          T(0.5), num_threads, [](double) {});
        index.search(some, ids.data(), ids.data(), {9, k, fast.distances.data(), fast.ids.data()}, num_threads,
                     [](double) {});
        wrong += !(plain == fast);
    }
    wrong += !(found[0] == found[1]);
}

}  // namespace

int main() {
    for (const dm2::Isa isa : {dm2::Isa::generic, dm2::Isa::neon, dm2::Isa::avx2, dm2::Isa::avx512}) {
        const dm2::Scanner* scanner = dm2::scanner(isa);
        for (int kind = 0; scanner != nullptr && kind < 4; ++kind)
            for (const std::ptrdiff_t d : {1, 37, 130}) {
                compare<float>(700, d, 5, kind, scanner);
                compare<double>(120, d, 119, kind, scanner);
                compare_graph<float>(1500, d, kind, scanner);
                compare_graph<double>(700, d, kind, scanner);
            }
    }
    for (const std::ptrdiff_t d : {1, 37, 130}) {
        compare_nearest<float>(300, d);
        compare_nearest<double>(300, d);
    }
    std::printf("%lld problems differ from the plain loop\n", static_cast<long long>(wrong));
    return wrong != 0;
}
