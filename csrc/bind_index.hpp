// Index and Graph for Python. Each keeps the arrays that it reads alive.
#pragma once

#include <mutex>
#include <shared_mutex>

#include "bind_shard.hpp"
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

    BoundIndex(const Array<std::uint8_t>& near, const Array<std::uint8_t>& wide, std::ptrdiff_t d, int num_threads,
               const py::object& report) {
        require(near.ndim() == 2 && near.shape(1) == kCode && near.shape(0) > 0 && near.shape(0) < std::ptrdiff_t{1} << 31,
                "near must be (rows, 32), fewer than 2**31");
        require(0 < d && d < std::numeric_limits<std::int32_t>::max(), "d must be that of the rows");
        require(wide.ndim() == 2 && wide.shape(0) == near.shape(0) && wide.shape(1) == code_bytes(d),
                "wide must have a code of all dimensions per row");
        Poll poll(report);
        const std::ptrdiff_t n = near.shape(0), bytes = wide.shape(1);
        const std::uint8_t *codes = near.data(), *longer = wide.data();
        py::gil_scoped_release release;
        index = std::make_unique<Index<T>>(n, d, codes, longer, bytes, *scanner(Isa::automatic), num_threads,
                                           [&](double) { poll(0.0); });
    }

    void make_cells(int num_threads, const py::object& report) {
        require(index->cells == nullptr, "the rows are in cells already");
        Poll poll(report);
        py::gil_scoped_release release;
        index->make_cells(num_threads, [&](double) { poll(0.0); });
    }
    bool has_rows() const { return index->rows.data != nullptr; }

    static Array<std::int64_t> copy(const std::vector<std::ptrdiff_t>& values) {
        Array<std::int64_t> found(static_cast<std::ptrdiff_t>(values.size()));
        std::copy(values.begin(), values.end(), found.mutable_data());
        return found;
    }
    Array<std::int64_t> places() const { return copy(index->side->order); }
    Array<std::int64_t> cells() const {
        require(index->cells != nullptr, "the rows are in no cells yet");
        return copy(index->cells->first);
    }

    void search(const py::array& queries, const Array<T>& query_scale, const Array<std::int64_t>& query_ids,
                const Array<std::int64_t>& row_ids, Array<T>& distances, Array<std::int64_t>& indices, int num_threads,
                const py::object& report) const {
        require(has_rows(), "an index of codes has no rows to search");
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

    BoundGraph(std::shared_ptr<BoundIndex<T>> index_, const Array<std::int64_t>& ids_, std::ptrdiff_t slots,
               std::ptrdiff_t first, std::ptrdiff_t last)
        : index(std::move(index_)), ids(checked(*index, ids_)),
          graph(*index->index, ids.data(), checked(slots), checked(*index, first),
                checked(*index, last < 0 ? index->index->rows.n : last, first)) {}
    BoundGraph(const std::shared_ptr<BoundGraph>& other, const Array<std::int64_t>& ids_)
        : BoundGraph(*other, ids_, other->reading()) {}

    void probe(std::ptrdiff_t from, std::ptrdiff_t to, int num_threads, const py::object& report) {
        require(0 <= from && from <= to && to < std::ptrdiff_t{1} << 31, "ranks must ascend, and be fewer than 2**31");
        const std::unique_lock<std::shared_mutex> turn = changing();
        Poll poll(report);
        const py::gil_scoped_release release;
        graph.probe(from, to, num_threads, [&](double part) { poll(part); });
    }
    Array<std::int64_t> ranks(const Array<std::int64_t>& places, const Array<std::int64_t>& others) const {
        require_aligned({places, others});
        require(places.ndim() == 1 && others.ndim() == 1 && places.size() == others.size(), "others must match places");
        for (const Array<std::int64_t>* part : {&places, &others})
            require(std::all_of(part->data(), part->data() + part->size(),
                                [&](std::int64_t p) { return p >= 0 && p < index->index->rows.n; }),
                    "places must be those of rows");
        Array<std::int64_t> found(places.size());
        for (std::ptrdiff_t i = 0; i < places.size(); ++i)
            found.mutable_data()[i] = index->index->cells->rank(index->index->code(0), places.data()[i], others.data()[i]);
        return found;
    }
    Array<std::uint32_t> freeze() {
        const std::unique_lock<std::shared_mutex> turn = changing();
        Array<std::uint32_t> frozen({graph.last() - graph.first(), graph.slots()});
        graph.freeze(frozen.mutable_data());
        return frozen;
    }
    py::tuple join(const py::object& frozen, int num_threads, const py::object& report) {
        const bool whole = graph.first() == 0 && graph.last() == index->index->rows.n;
        require(whole || !frozen.is_none(), "a part of a graph needs the frozen lists of all");
        const std::unique_lock<std::shared_mutex> turn = changing();
        Poll poll(report);
        const auto meet = [&](const std::uint32_t* lists) {
            return graph.join(lists, num_threads, [&](double part) { poll(part); });
        };
        if (frozen.is_none())
            return told([&] {
                std::vector<std::uint32_t> own(static_cast<std::size_t>(graph.last() * graph.slots()));
                graph.freeze(own.data());
                return meet(own.data());
            });
        const auto lists = frozen.cast<Array<std::uint32_t>>();
        require(lists.ndim() == 2 && lists.shape(0) == index->index->rows.n && lists.shape(1) == graph.slots(),
                "frozen must be (rows, slots)");
        const std::uint32_t* all = lists.data();
        require(std::all_of(all, all + lists.size(), [&](std::uint32_t entry) { return graph.is_frozen(entry); }),
                "frozen must name rows");
        return told([&] { return meet(all); });
    }
    void take(const Array<std::int64_t>& places, const Array<std::uint64_t>& entries) {
        const std::int64_t* to = places.data();
        const std::uint64_t* offered = entries.data();
        require(places.ndim() == 1 && entries.ndim() == 1 && places.size() == entries.size(),
                "places and entries must be as many");
        require(std::all_of(to, to + places.size(),
                            [&](std::int64_t p) { return p >= graph.first() && p < graph.last(); }),
                "places must be those of this part");
        require(std::all_of(offered, offered + entries.size(), [&](std::uint64_t entry) { return graph.is_offer(entry); }),
                "entries must name rows");
        const std::unique_lock<std::shared_mutex> turn = changing();
        const std::ptrdiff_t n = places.size();
        py::gil_scoped_release release;
        graph.take(to, offered, n);
    }
    Array<std::int64_t> candidates(std::ptrdiff_t first, std::ptrdiff_t last) const {
        require(graph.first() <= first && first <= last && last <= graph.last(), "places must be those of this part");
        const std::shared_lock<std::shared_mutex> turn = reading();
        Array<std::int64_t> found({last - first, graph.slots()});
        std::int64_t* out = found.mutable_data();
        for (std::ptrdiff_t p = first; p < last; ++p) graph.candidates(p, out + (p - first) * graph.slots());
        return found;
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
        require(index->has_rows(), "an index of codes has no rows to measure");
        require(below(places, index->index->rows.n) && graph.first() == 0 && graph.last() == index->index->rows.n,
                "places must be those of rows");
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
    // What a join leaves for others, made without the GIL: (places, entries).
    template <class Step>
    static py::tuple told(const Step& step) {
        Offers offers;
        {
            py::gil_scoped_release release;
            offers = step();
        }
        const auto n = static_cast<py::ssize_t>(offers.places.size());
        return py::make_tuple(Array<std::int64_t>(n, offers.places.data()),
                              Array<std::uint64_t>(n, offers.entries.data()));
    }
    static std::ptrdiff_t checked(const BoundIndex<T>& index, std::ptrdiff_t place, std::ptrdiff_t first = 0) {
        const std::vector<std::ptrdiff_t>& cells = index.index->cells->first;
        require(std::binary_search(cells.begin(), cells.end(), place), "a part must be of whole cells");
        require(first <= place, "first must not be behind last");
        return place;
    }
    mutable std::shared_mutex turns_;  // the lists change in place, and a caller may have several threads

    BoundGraph(const BoundGraph& other, const Array<std::int64_t>& ids_, const std::shared_lock<std::shared_mutex>&)
        : index(other.index), ids(checked(*index, ids_)), graph(other.graph, ids.data()) {}

    static const Array<std::int64_t>& checked(const BoundIndex<T>& index, const Array<std::int64_t>& ids) {
        require_aligned({ids});
        require(ids.size() == index.index->rows.n, "ids must have one value per row");
        require(index.index->cells != nullptr, "the rows are in no cells yet");
        return ids;
    }
    static std::ptrdiff_t checked(std::ptrdiff_t slots) {
        require(0 < slots && slots < 1 << 15, "slots must be at least 1 and fewer than 2**15");
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

// Codes of rows for a graph: those of 32 bytes and of all dimensions, to near and wide.
template <class T>
void encode(const py::array& rows, const Array<T>& scale, const std::shared_ptr<Frame>& frame, Array<std::uint8_t>& near,
            Array<std::uint8_t>& wide, int num_threads) {
    const Rows<T> x = as_rows(rows, scale);
    frame->require_for(x.d);
    require(frame->grids.size() == 2, "frame must be that of a graph");
    const Grid &shortest = frame->grids[0], &full = frame->grids[1];
    require(near.ndim() == 2 && near.shape(0) == x.n && near.shape(1) == shortest.bytes && wide.ndim() == 2 &&
                wide.shape(0) == x.n && wide.shape(1) == full.bytes,
            "near and wide must have a code per row");
    require_aligned({rows, scale});
    require_apart(near, {rows, scale, wide});
    require_apart(wide, {rows, scale});
    std::uint8_t *codes = near.mutable_data(), *longer = wide.mutable_data();
    Poll poll;
    const py::gil_scoped_release release;
    const DefaultArithmetic arithmetic;
    encode_rows(x, frame->folds, num_threads, [&](double) { poll(0.0); }, [&](Encoder& encoder, std::ptrdiff_t row) {
        encoder.write(shortest, codes + row * kCode);
        encoder.write(full, longer + row * full.bytes);
    });
}

// The k nearest by (distance, id) of the rows that candidates (n, K) name to the rows `own` (n,); -1 names none.
template <class T>
void nearest(const py::array& rows, const Array<T>& scale, const Array<std::int64_t>& ids, const Array<std::int64_t>& own,
             const Array<std::int64_t>& candidates, double w1, double w2, Array<T>& distances,
             Array<std::int64_t>& indices, int num_threads) {
    const Rows<T> x = as_rows(rows, scale);
    const std::ptrdiff_t n = own.size(), slots = candidates.ndim() == 2 ? candidates.shape(1) : 0, k = distances.shape(1);
    require(ids.size() == x.n && own.ndim() == 1 && candidates.ndim() == 2 && candidates.shape(0) == n && slots > 0,
            "candidates must be (own rows, slots), with ids per row");
    require(distances.ndim() == 2 && distances.shape(0) == n && indices.ndim() == 2 && indices.shape(0) == n && k > 0 &&
                indices.shape(1) == k,
            "distances and indices must be (own rows, k)");
    require_aligned({rows, scale, ids, own, candidates, distances, indices});
    require_apart(distances, {rows, scale, ids, own, candidates, indices});
    require_apart(indices, {rows, scale, ids, own, candidates});
    const std::int64_t *who = ids.data(), *mine = own.data(), *named = candidates.data();
    require(std::all_of(mine, mine + n, [&](std::int64_t row) { return row >= 0 && row < x.n; }) &&
                std::all_of(named, named + n * slots, [&](std::int64_t row) { return row >= -1 && row < x.n; }),
            "own and candidates must name rows");
    T* d = distances.mutable_data();
    std::int64_t* i = indices.mutable_data();
    const py::gil_scoped_release release;
    const DefaultArithmetic arithmetic;
    parallel_blocks(n, 256, num_threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
        std::vector<T> one(static_cast<std::size_t>(padded(x.d))), other(one.size());
        std::vector<std::pair<T, std::int64_t>> found;
        for (std::ptrdiff_t r = first; r < first + count; ++r) {
            const std::int64_t* list = named + r * slots;
            const std::ptrdiff_t held = std::find(list, list + slots, -1) - list;
            nearest_of(x, mine[r], held, [&](std::ptrdiff_t c) { return list[c]; }, who, static_cast<T>(w1),
                       static_cast<T>(w2), k, one.data(), other.data(), found);
            for (std::ptrdiff_t c = 0; c < k; ++c) std::tie(d[r * k + c], i[r * k + c]) = found[c];
        }
    });
}

// The numbers of the rows, of n of d dimensions, that the frame of a graph is made from; how many of them are probes; and
// which neighbour of theirs is asked for.
inline py::tuple graph_sample(std::ptrdiff_t n, std::ptrdiff_t d) {
    require(n > 0 && d > 0, "there must be rows");
    SampledRows sampled;
    Array<std::int64_t> numbers(Encoding::sampled(d));
    for (py::ssize_t i = 0; i < numbers.size(); ++i) numbers.mutable_data()[i] = sampled.next(n);
    return py::make_tuple(numbers, Encoding::probes(n), Encoding::typical(n));
}

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
        .def(py::init<const Array<std::uint8_t>&, const Array<std::uint8_t>&, std::ptrdiff_t, int, const py::object&>(),
             py::arg("near").noconvert(), py::arg("wide").noconvert(), py::arg("d"), py::kw_only(),
             py::arg("num_threads"), py::arg("report") = py::none(), "Codes alone, of rows that are elsewhere.")
        .def("places", method(&Bound::places), "The rows in the order of their places.")
        .def("make_cells", method(&Bound::make_cells), py::kw_only(), py::arg("num_threads"),
             py::arg("report") = py::none(), "Put rows of codes alone in cells, and their places in that order.")
        .def("cells", method(&Bound::cells), "The places where cells begin, and where the last ends.");
    module.def("encode", &encode<T>, py::arg("rows").noconvert(), py::arg("scale").noconvert(),
               py::arg("frame").none(false), py::arg("near").noconvert(), py::arg("wide").noconvert(), py::kw_only(),
               py::arg("num_threads"), "Write the codes that a graph is made of.");
    module.def("nearest", &nearest<T>, py::arg("rows").noconvert(), py::arg("scale").noconvert(),
               py::arg("ids").noconvert(), py::arg("own").noconvert(), py::arg("candidates").noconvert(), py::arg("w1"),
               py::arg("w2"), py::arg("distances").noconvert(), py::arg("indices").noconvert(), py::kw_only(),
               py::arg("num_threads"), "Write the k nearest of the rows that candidates name.");
    py::class_<Lists, std::shared_ptr<Lists>>(module, graph.c_str(), "Approximate neighbours of prepared rows.")
        .def(py::init<std::shared_ptr<Bound>, const Array<std::int64_t>&, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t>(),
             py::arg("index").none(false), py::arg("ids").noconvert(), py::arg("slots"), py::arg("first") = 0,
             py::arg("last") = -1, "Empty lists of all places, or of whole cells [first, last).")
        .def(py::init<const std::shared_ptr<Lists>&, const Array<std::int64_t>&>(), py::arg("graph").none(false),
             py::arg("ids").noconvert(), "The same graph without the rows whose id is negative now.")
        .def("probe", method(&Lists::probe), py::arg("start"), py::arg("stop"), py::kw_only(), py::arg("num_threads"),
             py::arg("report") = py::none(), "Each row meets its nearest cells, of rank start to stop - 1.")
        .def("ranks", method(&Lists::ranks), py::arg("places").noconvert(), py::arg("others").noconvert(),
             "How many cells are nearer to each row than the cell of another row.")
        .def("freeze", method(&Lists::freeze), "The lists as they are now, for a join, of this part.")
        .def("join", method(&Lists::join), py::arg("frozen") = py::none(), py::kw_only(), py::arg("num_threads"),
             py::arg("report") = py::none(), "The rows around each row meet each other.")
        .def("take", method(&Lists::take), py::arg("places").noconvert(), py::arg("entries").noconvert(),
             "Take what join of other parts has returned for these places.")
        .def("candidates", method(&Lists::candidates), py::arg("first"), py::arg("last"), "The rows in lists, or -1.")
        .def("nearest", method(&Lists::nearest), py::arg("places").noconvert(), py::arg("lines").noconvert(),
             py::arg("distances").noconvert(), py::arg("indices").noconvert(), py::kw_only(),
             py::arg("num_threads"), py::arg("report") = py::none(),
             "Write the k nearest in the lists at these places to these lines.");
}

}  // namespace bind
}  // namespace dm2
