// Index and Graph for Python. Each keeps the arrays that it reads alive.
#pragma once

#include <mutex>
#include <shared_mutex>

#include "bind.hpp"
#include "graph.hpp"

namespace dm2 {
namespace bind {

template <class T>
struct BoundIndex {
    py::array rows;
    Array<T> scale;
    std::unique_ptr<Index<T>> index;

    BoundIndex(const py::array& rows_, const Array<T>& scale_, const Array<std::int64_t>& ids, double w1, double w2,
               int num_threads, const std::string& isa, const py::object& report)
        : rows(rows_), scale(scale_) {
        const Rows<T> x = as_rows(rows, scale);
        require_aligned({rows, scale, ids});
        require(ids.size() == x.n && x.n > 0, "ids must have one value per row");
        require(std::isfinite(w1) && std::isfinite(w2), "w1 and w2 must be finite");
        require(x.n < std::ptrdiff_t{1} << 31, "rows must be fewer than 2**31");
        require(Bound::holds<T>(x.d, static_cast<T>(w1), static_cast<T>(w2)), "rows have too many features");
        const Scanner& scanner = *as_scanner(isa);
        const std::int64_t* who = ids.data();
        Poll poll(report);
        py::gil_scoped_release release;
        index = std::make_unique<Index<T>>(x, who, static_cast<T>(w1), static_cast<T>(w2), scanner, num_threads,
                                           [&](double) { poll(0.0); });
    }

    Array<std::int64_t> places() const {
        const std::vector<std::ptrdiff_t>& order = index->side->order;
        Array<std::int64_t> found(static_cast<std::ptrdiff_t>(order.size()));
        std::copy(order.begin(), order.end(), found.mutable_data());
        return found;
    }

    void search(const py::array& queries, const Array<T>& query_scale, const Array<std::int64_t>& query_ids,
                const Array<std::int64_t>& row_ids, Array<T>& distances, Array<std::int64_t>& indices, int num_threads,
                const py::object& report) const {
        const Rows<T> q = as_rows(queries, query_scale);
        require(q.d == index->rows.d, "queries and rows must have the same dimension");
        require(query_ids.size() == q.n && row_ids.size() == index->rows.n, "ids must have one value per row");
        require(distances.ndim() == 2 && distances.shape(0) == q.n && distances.shape(1) > 0 && indices.ndim() == 2 &&
                    indices.shape(0) == q.n && indices.shape(1) == distances.shape(1),
                "distances and indices must be (queries, k)");
        require_aligned({queries, query_scale, query_ids, row_ids, distances, indices});
        require_apart(distances, {queries, query_scale, query_ids, rows, scale, row_ids, indices});
        require_apart(indices, {queries, query_scale, query_ids, rows, scale, row_ids});
        require_numbers(distances);
        const Running<T> best{q.n, distances.shape(1), distances.mutable_data(), indices.mutable_data()};
        const std::int64_t *who = query_ids.data(), *whose = row_ids.data();
        Poll poll(report);
        py::gil_scoped_release release;
        index->search(q, who, whose, best, num_threads, [&](double part) { poll(part); });
    }
};

template <class T>
struct BoundGraph {
    std::shared_ptr<BoundIndex<T>> index;
    Array<std::int64_t> ids;
    Graph<T> graph;

    BoundGraph(std::shared_ptr<BoundIndex<T>> index_, const Array<std::int64_t>& ids_, std::ptrdiff_t slots)
        : index(std::move(index_)), ids(checked(*index, ids_)), graph(*index->index, ids.data(), checked(slots)) {}
    BoundGraph(const std::shared_ptr<BoundGraph>& other, const Array<std::int64_t>& ids_)
        : BoundGraph(*other, ids_, other->reading()) {}

    void probe(std::ptrdiff_t from, std::ptrdiff_t to, int num_threads, const py::object& report) {
        require(0 <= from && from <= to && to < std::ptrdiff_t{1} << 31, "ranks must ascend, and be fewer than 2**31");
        const std::unique_lock<std::shared_mutex> turn = changing();
        Poll poll(report);
        py::gil_scoped_release release;
        graph.probe(from, to, num_threads, [&](double part) { poll(part); });
    }
    void join(int num_threads, const py::object& report) {
        const std::unique_lock<std::shared_mutex> turn = changing();
        Poll poll(report);
        py::gil_scoped_release release;
        graph.join(num_threads, [&](double part) { poll(part); });
    }
    void nearest(const Array<std::int64_t>& places, const Array<std::int64_t>& lines, Array<T>& distances,
                 Array<std::int64_t>& indices, int num_threads, const py::object& report) const {
        require(distances.ndim() == 2 && indices.ndim() == 2 && indices.shape(0) == distances.shape(0) &&
                    indices.shape(1) == distances.shape(1),
                "distances and indices must be (rows, k)");
        const std::int64_t *which = places.data(), *to = lines.data();
        const auto below = [](const Array<std::int64_t>& values, std::ptrdiff_t end) {
            const std::int64_t* v = values.data();
            return std::all_of(v, v + values.size(), [&](std::int64_t i) { return i >= 0 && i < end; });
        };
        require(below(places, index->index->rows.n), "places must be those of rows");
        require(lines.size() == places.size() && below(lines, distances.shape(0)), "lines must be those of distances");
        require_aligned({places, lines, distances, indices});
        require_apart(distances, {places, lines, ids, index->rows, index->scale, indices});
        require_apart(indices, {places, lines, ids, index->rows, index->scale});
        const std::shared_lock<std::shared_mutex> turn = reading();
        T* d = distances.mutable_data();
        std::int64_t* i = indices.mutable_data();
        const std::ptrdiff_t n = places.size(), k = distances.shape(1);
        Poll poll(report);
        py::gil_scoped_release release;
        graph.nearest(which, to, n, k, d, i, num_threads, [&](double part) { poll(part); });
    }

private:
    mutable std::shared_mutex turns_;  // the lists change in place, and a caller may have several threads

    BoundGraph(const BoundGraph& other, const Array<std::int64_t>& ids_, const std::shared_lock<std::shared_mutex>&)
        : index(other.index), ids(checked(*index, ids_)), graph(other.graph, ids.data()) {}

    static const Array<std::int64_t>& checked(const BoundIndex<T>& index, const Array<std::int64_t>& ids) {
        require_aligned({ids});
        require(ids.size() == index.index->rows.n, "ids must have one value per row");
        return ids;
    }
    static std::ptrdiff_t checked(std::ptrdiff_t slots) {
        require(0 < slots && slots < 1 << 16, "slots must be at least 1 and fewer than 2**16");
        return slots;
    }
    std::unique_lock<std::shared_mutex> changing() const {
        std::unique_lock<std::shared_mutex> lock(turns_, std::try_to_lock);
        if (!lock) throw std::runtime_error("another thread uses this graph: one at a time may extend it");
        return lock;
    }
    std::shared_lock<std::shared_mutex> reading() const {
        std::shared_lock<std::shared_mutex> lock(turns_, std::try_to_lock);
        if (!lock) throw std::runtime_error("another thread extends this graph: read it before or after");
        return lock;
    }
};

template <class T>
void define_index(py::module_& module, const char* name) {
    using Bound = BoundIndex<T>;
    using Lists = BoundGraph<T>;
    const std::string index = std::string("Index") + name, graph = std::string("Graph") + name;
    py::class_<Bound, std::shared_ptr<Bound>>(module, index.c_str(), "Rows prepared once.")
        .def(py::init<const py::array&, const Array<T>&, const Array<std::int64_t>&, double, double, int,
                      const std::string&, const py::object&>(),
             py::arg("rows").noconvert(), py::arg("scale").noconvert(), py::arg("ids").noconvert(), py::arg("w1"),
             py::arg("w2"), py::kw_only(), py::arg("num_threads"), py::arg("isa") = "auto",
             py::arg("report") = py::none())
        .def("search", method(&Bound::search), py::arg("queries").noconvert(), py::arg("query_scale").noconvert(),
             py::arg("query_ids").noconvert(), py::arg("row_ids").noconvert(), py::arg("distances").noconvert(),
             py::arg("indices").noconvert(), py::kw_only(), py::arg("num_threads"), py::arg("report") = py::none(),
             "Update the running best k of the queries with the rows whose id is not negative, in place.")
        .def("places", method(&Bound::places), "The rows in the order of their places.");
    py::class_<Lists, std::shared_ptr<Lists>>(module, graph.c_str(), "Approximate neighbours of prepared rows.")
        .def(py::init<std::shared_ptr<Bound>, const Array<std::int64_t>&, std::ptrdiff_t>(),
             py::arg("index").none(false), py::arg("ids").noconvert(), py::arg("slots"))
        .def(py::init<const std::shared_ptr<Lists>&, const Array<std::int64_t>&>(), py::arg("graph").none(false),
             py::arg("ids").noconvert(), "The same graph without the rows whose id is negative now.")
        .def("probe", method(&Lists::probe), py::arg("start"), py::arg("stop"), py::kw_only(), py::arg("num_threads"),
             py::arg("report") = py::none(), "Each row meets its nearest cells, of rank start to stop - 1.")
        .def("join", method(&Lists::join), py::kw_only(), py::arg("num_threads"), py::arg("report") = py::none(),
             "Each row meets the neighbours of its neighbours.")
        .def("nearest", method(&Lists::nearest), py::arg("places").noconvert(), py::arg("lines").noconvert(),
             py::arg("distances").noconvert(), py::arg("indices").noconvert(), py::kw_only(),
             py::arg("num_threads"), py::arg("report") = py::none(),
             "Write the k nearest in the lists at these places to these lines.");
}

}  // namespace bind
}  // namespace dm2
