// dm2_fast._C: the C++ operations over NumPy arrays. Arguments are checked in dm2_fast; what is checked here again is
// what would read or write outside an array.
#include "bind.hpp"
#include "bind_index.hpp"
#include "bind_shard.hpp"
#include "confidence.hpp"
#include "mix.hpp"
#include "nearest.hpp"

namespace {

using namespace dm2::bind;

std::string automatic_isa() {
    for (const auto& [name, isa] : kNames)
        if (isa != dm2::Isa::automatic && dm2::scanner(isa) == dm2::scanner(dm2::Isa::automatic)) return name;
    return "none";
}

dm2::Choice as_choice(const std::string& isa, const py::object& levels) {
    dm2::Choice choice;
    choice.scanner = as_scanner(isa);
    choice.plain = py::isinstance<py::str>(levels);
    require(!choice.plain || levels.cast<std::string>() == "plain", "levels must be None, 'plain' or a list");
    if (!choice.plain && !levels.is_none()) {
        choice.levels.emplace();
        for (const py::handle level : levels) choice.levels->push_back(level.cast<std::ptrdiff_t>());
        require(static_cast<std::ptrdiff_t>(choice.levels->size()) <= dm2::kWideLevels, "levels must be at most three");
    }
    return choice;
}

template <class T>
void knn(const py::array& queries, const Array<T>& query_scale, const Array<std::int64_t>& query_ids,
         const py::array& rows, const Array<T>& row_scale, const Array<std::int64_t>& row_ids, Array<T>& distances,
         Array<std::int64_t>& indices, double w1, double w2, int num_threads, const std::string& isa,
         const py::object& levels, const py::object& report) {
    const dm2::Rows<T> q = as_rows(queries, query_scale), x = as_rows(rows, row_scale);
    require(q.d == x.d, "queries and rows must have the same dimension");
    require(query_ids.size() == q.n && row_ids.size() == x.n, "ids must have one value per row");
    require(distances.ndim() == 2 && distances.shape(0) == q.n && distances.shape(1) > 0 &&
                indices.ndim() == 2 && indices.shape(0) == q.n && indices.shape(1) == distances.shape(1),
            "distances and indices must be (queries, k)");
    require_aligned({queries, query_scale, query_ids, rows, row_scale, row_ids, distances, indices});
    require_apart(distances, {queries, query_scale, query_ids, rows, row_scale, row_ids, indices});
    require_apart(indices, {queries, query_scale, query_ids, rows, row_scale, row_ids});
    require_numbers(distances);
    require(std::isfinite(w1) && std::isfinite(w2), "w1 and w2 must be finite");
    const dm2::Problem<T> problem{q, query_ids.data(), x, row_ids.data(), static_cast<T>(w1), static_cast<T>(w2)};
    const dm2::Running<T> best{q.n, distances.shape(1), distances.mutable_data(), indices.mutable_data()};
    const dm2::Choice choice = as_choice(isa, levels);
    Poll poll(report);
    py::gil_scoped_release release;
    dm2::knn<T>(problem, best, choice, num_threads, std::ref(poll));
}

// For tests of the filter itself: whether pair (i, j) stays, at each code length (longest first), if its own computed
// distance is the threshold of row i. Each row's error is multiplied by `error`; slack = false leaves out the rounding
// of the distance: both must fail somewhere.
template <class T>
py::array_t<bool> survives(const py::array& rows, const Array<T>& scale, double w1, double w2, double clip,
                           double error, bool slack) {
    const dm2::Rows<T> x = as_rows(rows, scale);
    require_aligned({rows, scale});
    require(x.n > 0, "rows must hold at least one row");
    require(dm2::Bound::holds<T>(x.d, static_cast<T>(w1), static_cast<T>(w2)), "w1 and w2 must not be negative");
    require(clip > 0 && error >= 0, "clip must be positive, and error not negative");
    const std::ptrdiff_t width = dm2::padded(x.d);
    std::vector<T> read(static_cast<std::size_t>(x.n * width)), distance(static_cast<std::size_t>(x.n));
    x.read(0, x.n, read.data());
    std::vector<float> values;
    for (std::ptrdiff_t i = 0; i < x.n; ++i) values.insert(values.end(), &read[i * width], &read[i * width] + x.d);
    dm2::Sample sample(std::move(values), x.n, x.d);
    sample.fold(1);
    dm2::Bound bound = dm2::Bound::of(x.d, static_cast<T>(w1), static_cast<T>(w2));
    if (!slack) bound.rounding = 1;
    const std::ptrdiff_t levels = static_cast<std::ptrdiff_t>(sample.widths.size());
    py::array_t<bool> out({levels, x.n, x.n});
    auto stays = out.mutable_unchecked<3>();
    dm2::Encoder encoder(sample.folds, x.d);
    for (std::ptrdiff_t level = 0; level < levels; ++level) {
        const dm2::Grid grid(sample, level, clip);
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(x.n * grid.bytes));
        std::vector<float> errors;
        for (std::ptrdiff_t i = 0; i < x.n; ++i) {
            encoder.read(&read[i * width], x.d);
            errors.push_back(static_cast<float>(error) * encoder.write(grid, &codes[i * grid.bytes]));
        }
        for (std::ptrdiff_t i = 0; i < x.n; ++i) {
            dm2::distances(&read[i * width], read.data(), x.n, width, static_cast<T>(w1), static_cast<T>(w2),
                           distance.data());
            for (std::ptrdiff_t j = 0; j < x.n; ++j)
                stays(level, i, j) = dm2::generic::sad(&codes[i * grid.bytes], &codes[j * grid.bytes], grid.bytes) <=
                                     dm2::Bound::reach(bound.l1(distance[j]) / grid.step, errors[i], dm2::kMost) +
                                         dm2::Bound::margin(errors[j], dm2::kMost);
        }
    }
    return out;
}

template <class T>
void pairwise(const py::array& queries, const Array<T>& query_scale, const py::array& rows, const Array<T>& row_scale,
              Array<T>& out, double w1, double w2, int num_threads) {
    const dm2::Rows<T> q = as_rows(queries, query_scale), x = as_rows(rows, row_scale);
    require(q.d == x.d, "queries and rows must have the same dimension");
    require(out.ndim() == 2 && out.shape(0) == q.n && out.shape(1) == x.n, "out must be (queries, rows)");
    require_aligned({queries, query_scale, rows, row_scale, out});
    require_apart(out, {queries, query_scale, rows, row_scale});
    T* data = out.mutable_data();
    Poll poll;
    py::gil_scoped_release release;
    dm2::pairwise<T>(q, x, static_cast<T>(w1), static_cast<T>(w2), data, num_threads, std::ref(poll));
}

template <class T>
void lower_to_nearest(const Strided<T>& rows, const Strided<T>& points, Array<T>& distances, int num_threads) {
    const std::ptrdiff_t stride = row_stride(rows), point_stride = row_stride(points);
    const std::ptrdiff_t n = rows.shape(0), count = points.shape(0), d = rows.shape(1);
    require(points.shape(1) == d, "rows and points must have the same dimension");
    require(distances.ndim() == 1 && distances.size() == n, "distances must have one value per row");
    require_aligned({rows, points, distances});
    require_apart(distances, {rows, points});
    const T *x = rows.data(), *y = points.data();
    T* data = distances.mutable_data();
    Poll poll;
    py::gil_scoped_release release;
    dm2::lower_to_nearest<T>(x, n, stride, y, count, point_stride, d, data, num_threads, std::ref(poll));
}

template <class In, class Out>
void mix(const Strided<In>& inputs, const Array<std::int64_t>& indices, const Array<Out>& coefficients,
         const Array<Out>& mean, const Array<Out>& std_, std::ptrdiff_t channel_stride, Array<Out>& out,
         int num_threads) {
    const std::ptrdiff_t stride = row_stride(inputs), width = inputs.shape(1);
    require(indices.ndim() == 2 && coefficients.ndim() == 2 && indices.shape(0) == coefficients.shape(0) &&
                indices.shape(1) == coefficients.shape(1),
            "indices and coefficients must be (n, terms)");
    const std::ptrdiff_t n = indices.shape(0), terms = indices.shape(1), channels = mean.size();
    const std::ptrdiff_t last = out.ndim() == 3 ? out.shape(2) : 0;
    require((out.ndim() == 2 || (out.ndim() == 3 && last > 0)) && out.shape(0) == n &&
                out.shape(1) * std::max<std::ptrdiff_t>(last, 1) == width,
            "out must be (n, width) or (n, pixels, channels)");
    require(std_.size() == channels && channel_stride > 0, "mean and std must have one value per channel");
    require(channels == 0 || (width % channels == 0 && width / channels % channel_stride == 0),
            "width must be whole channels");
    require_aligned({inputs, indices, coefficients, mean, std_, out});
    require_apart(out, {inputs, indices, coefficients, mean, std_});
    const std::int64_t* ids = indices.data();
    require(std::all_of(ids, ids + n * terms, [&](std::int64_t i) { return i >= 0 && i < inputs.shape(0); }),
            "indices must be rows of inputs");
    const In* rows = inputs.data();
    const Out *c = coefficients.data(), *m = channels ? mean.data() : nullptr, *s = std_.data();
    Out* data = out.mutable_data();
    Poll poll;
    py::gil_scoped_release release;
    dm2::mix<In, Out>(rows, stride, width, ids, c, n, terms, m, s, channels, channel_stride, last, data, num_threads,
                      std::ref(poll));
}

template <class T>
void uncertainty(const Strided<T>& logits, const std::string& kind, Array<T>& out, int num_threads) {
    const std::ptrdiff_t stride = row_stride(logits), n = logits.shape(0), classes = logits.shape(1);
    require(out.ndim() == 1 && out.size() == n && classes > 0, "out must be (n,), with at least one class");
    const dm2::Kind k = kind == "least-confidence" ? dm2::Kind::least_confidence
                        : kind == "entropy"        ? dm2::Kind::entropy
                                                   : dm2::Kind::margin;
    require(k != dm2::Kind::margin || (kind == "margin" && classes > 1), "kind must be known");
    require_aligned({logits, out});
    require_apart(out, {logits});
    const T* z = logits.data();
    T* data = out.mutable_data();
    Poll poll;
    py::gil_scoped_release release;
    dm2::uncertainty<T>(z, n, classes, stride, k, data, num_threads, std::ref(poll));
}

template <class T>
void define_distances(py::module_& module) {
    module.def("knn", &knn<T>, py::arg("queries").noconvert(), py::arg("query_scale").noconvert(),
               py::arg("query_ids").noconvert(), py::arg("rows").noconvert(), py::arg("row_scale").noconvert(),
               py::arg("row_ids").noconvert(), py::arg("distances").noconvert(), py::arg("indices").noconvert(),
               py::arg("w1"), py::arg("w2"), py::kw_only(), py::arg("num_threads"), py::arg("isa") = "auto",
               py::arg("levels") = py::none(), py::arg("report") = py::none(),
               "Update the running best k (distances, indices) of the queries with the rows, in place.");
    module.def("survives", &survives<T>, py::arg("rows").noconvert(), py::arg("scale").noconvert(), py::arg("w1"),
               py::arg("w2"), py::kw_only(), py::arg("clip") = 1.0, py::arg("error") = 1.0, py::arg("slack") = true,
               "Whether each pair passes the filter with its own distance as threshold, at each level; for tests.");
    module.def("pairwise", &pairwise<T>, py::arg("queries").noconvert(), py::arg("query_scale").noconvert(),
               py::arg("rows").noconvert(), py::arg("row_scale").noconvert(), py::arg("out").noconvert(),
               py::arg("w1"), py::arg("w2"), py::kw_only(), py::arg("num_threads"),
               "Write the distance of every query to every row into out.");
    module.def("lower_to_nearest", &lower_to_nearest<T>, py::arg("rows").noconvert(), py::arg("points").noconvert(),
               py::arg("distances").noconvert(), py::kw_only(), py::arg("num_threads"),
               "Lower the squared distance of each row to that of its nearest point, in place.");
    module.def("uncertainty", &uncertainty<T>, py::arg("logits").noconvert(), py::arg("kind"),
               py::arg("out").noconvert(), py::kw_only(), py::arg("num_threads"),
               "Write the uncertainty of each row of logits into out.");
}

template <class In, class Out>
void define_mix(py::module_& module) {
    module.def("mix", &mix<In, Out>, py::arg("inputs").noconvert(), py::arg("indices").noconvert(),
               py::arg("coefficients").noconvert(), py::arg("mean").noconvert(), py::arg("std").noconvert(),
               py::arg("channel_stride"), py::arg("out").noconvert(), py::kw_only(), py::arg("num_threads"),
               "Write the weighted sums of gathered rows into out.");
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "The CPU implementation of dm2_fast's operations.";
    module.def("isa", &automatic_isa, "The instruction set that isa='auto' takes on this machine.");
    define_distances<float>(module);
    define_distances<double>(module);
    define_index<float>(module, "Float");
    define_index<double>(module, "Double");
    define_frame(module);
    module.def("graph_sample", &graph_sample, py::arg("n"), py::arg("d"),
               "Rows that the frame of a graph is made from, how many are probes, and which neighbour of theirs is asked.");
    define_shard<float>(module, "ShardFloat");
    define_shard<double>(module, "ShardDouble");
    define_mix<std::uint8_t, float>(module);
    define_mix<float, float>(module);
    define_mix<double, double>(module);
}
