// dm2_fast._C: the C++ operations over NumPy arrays. Arguments are checked in dm2_fast; what is checked here again is
// what would read or write outside an array.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "confidence.hpp"
#include "knn.hpp"
#include "mix.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // with noconvert(): a wrong dtype or layout is an error, not a copy
template <class T>
using Strided = py::array_t<T>;  // rows may be strided, elements within a row may not

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

std::ptrdiff_t row_stride(const py::array& rows) {
    require(rows.ndim() == 2, "rows must be 2-D");
    require(rows.shape(1) <= 1 || rows.strides(1) == rows.itemsize(), "rows must be dense within a row");
    require(rows.strides(0) % rows.itemsize() == 0, "rows must be whole elements apart");
    return rows.strides(0) / rows.itemsize();
}

template <class T>
dm2::Rows<T> as_rows(const Strided<T>& rows, const Array<T>& scale) {
    const std::ptrdiff_t stride = row_stride(rows);
    require(scale.size() == rows.shape(0), "scale must have one value per row");
    return {rows.data(), rows.shape(0), rows.shape(1), stride, scale.data()};
}

template <class T>
void knn(const Strided<T>& queries, const Array<T>& query_scale, const Array<std::int64_t>& query_ids,
         const Strided<T>& rows, const Array<T>& row_scale, const Array<std::int64_t>& row_ids, Array<T>& distances,
         Array<std::int64_t>& indices, double w1, double w2, int num_threads) {
    const dm2::Rows<T> q = as_rows(queries, query_scale), x = as_rows(rows, row_scale);
    require(q.d == x.d, "queries and rows must have the same dimension");
    require(query_ids.size() == q.n && row_ids.size() == x.n, "ids must have one value per row");
    require(distances.ndim() == 2 && distances.shape(0) == q.n && distances.shape(1) > 0 &&
                indices.ndim() == 2 && indices.shape(0) == q.n && indices.shape(1) == distances.shape(1),
            "distances and indices must be (queries, k)");
    T* best_distances = distances.mutable_data();
    std::int64_t* best_ids = indices.mutable_data();
    const std::ptrdiff_t k = distances.shape(1);
    const std::int64_t *q_ids = query_ids.data(), *x_ids = row_ids.data();
    py::gil_scoped_release release;
    dm2::knn<T>(q, q_ids, x, x_ids, k, static_cast<T>(w1), static_cast<T>(w2), best_distances, best_ids, num_threads);
}

template <class T>
void pairwise(const Strided<T>& queries, const Array<T>& query_scale, const Strided<T>& rows, const Array<T>& row_scale,
              Array<T>& out, double w1, double w2, int num_threads) {
    const dm2::Rows<T> q = as_rows(queries, query_scale), x = as_rows(rows, row_scale);
    require(q.d == x.d, "queries and rows must have the same dimension");
    require(out.ndim() == 2 && out.shape(0) == q.n && out.shape(1) == x.n, "out must be (queries, rows)");
    T* data = out.mutable_data();
    py::gil_scoped_release release;
    dm2::pairwise<T>(q, x, static_cast<T>(w1), static_cast<T>(w2), data, num_threads);
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
    require(out.ndim() == 2 && out.shape(0) == n && out.shape(1) == width, "out must be (n, width)");
    require(std_.size() == channels && channel_stride > 0, "mean and std must have one value per channel");
    require(channels == 0 || width % (channels * channel_stride) == 0, "width must be whole channels");
    const std::int64_t* ids = indices.data();
    require(std::all_of(ids, ids + n * terms, [&](std::int64_t i) { return i >= 0 && i < inputs.shape(0); }),
            "indices must be rows of inputs");
    const In* rows = inputs.data();
    const Out *c = coefficients.data(), *m = channels ? mean.data() : nullptr, *s = std_.data();
    Out* data = out.mutable_data();
    py::gil_scoped_release release;
    dm2::mix<In, Out>(rows, stride, width, ids, c, n, terms, m, s, channels, channel_stride, data, num_threads);
}

template <class T>
void uncertainty(const Strided<T>& logits, const std::string& kind, Array<T>& out, int num_threads) {
    const std::ptrdiff_t stride = row_stride(logits), n = logits.shape(0), classes = logits.shape(1);
    require(out.ndim() == 1 && out.size() == n && classes > 0, "out must be (n,), with at least one class");
    const dm2::Kind k = kind == "least-confidence" ? dm2::Kind::least_confidence
                        : kind == "entropy"        ? dm2::Kind::entropy
                                                   : dm2::Kind::margin;
    require(k != dm2::Kind::margin || (kind == "margin" && classes > 1), "kind must be known");
    const T* z = logits.data();
    T* data = out.mutable_data();
    py::gil_scoped_release release;
    dm2::uncertainty<T>(z, n, classes, stride, k, data, num_threads);
}

template <class T>
void define_distances(py::module_& module) {
    module.def("knn", &knn<T>, py::arg("queries").noconvert(), py::arg("query_scale").noconvert(),
               py::arg("query_ids").noconvert(), py::arg("rows").noconvert(), py::arg("row_scale").noconvert(),
               py::arg("row_ids").noconvert(), py::arg("distances").noconvert(), py::arg("indices").noconvert(),
               py::arg("w1"), py::arg("w2"), py::kw_only(), py::arg("num_threads"),
               "Update the running best k (distances, indices) of the queries with the rows, in place.");
    module.def("pairwise", &pairwise<T>, py::arg("queries").noconvert(), py::arg("query_scale").noconvert(),
               py::arg("rows").noconvert(), py::arg("row_scale").noconvert(), py::arg("out").noconvert(),
               py::arg("w1"), py::arg("w2"), py::kw_only(), py::arg("num_threads"),
               "Write the distance of every query to every row into out.");
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
    define_distances<float>(module);
    define_distances<double>(module);
    define_mix<std::uint8_t, float>(module);
    define_mix<float, float>(module);
    define_mix<double, double>(module);
}
