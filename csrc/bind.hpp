// NumPy arrays as the C++ operations take them, and what every binding needs.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "search.hpp"

namespace py = pybind11;

namespace dm2 {
namespace bind {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // with noconvert(): a wrong dtype or layout is an error, not a copy
template <class T>
using Strided = py::array_t<T>;  // rows may be strided, elements within a row may not

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// The bytes that an array spans; none of an empty one.
inline std::pair<const char*, const char*> span(const py::array& array) {
    const char *first = static_cast<const char*>(array.data()), *last = first + array.itemsize();
    for (py::ssize_t t = 0; t < array.ndim(); ++t) {
        if (array.shape(t) == 0) return {first, first};
        (array.strides(t) < 0 ? first : last) += (array.shape(t) - 1) * array.strides(t);
    }
    return {first, last};
}

using Arrays = std::initializer_list<std::reference_wrapper<const py::array>>;

inline void require_aligned(const Arrays& arrays) {
    for (const py::array& array : arrays)
        require(reinterpret_cast<std::uintptr_t>(array.data()) % static_cast<std::uintptr_t>(array.itemsize()) == 0,
                "arrays must be aligned to their elements");
}

// What is written must not be what is read, since indices and numbers are checked once, before.
inline void require_apart(const py::array& out, const Arrays& others) {
    const auto [first, last] = span(out);
    for (const py::array& other : others) {
        const auto [from, to] = span(other);
        require(first == last || from == to || to <= first || last <= from, "outputs must not overlap other arrays");
    }
}

template <class T>
void require_numbers(const py::array_t<T, py::array::c_style>& distances) {
    const T* d = distances.data();
    require(std::all_of(d, d + distances.size(), [](T x) { return x >= 0; }), "distances must not be NaN or negative");
}

inline std::ptrdiff_t row_stride(const py::array& rows) {
    require(rows.ndim() == 2, "rows must be 2-D");
    if (rows.size() == 0) return 0;
    require(rows.shape(1) <= 1 || rows.strides(1) == rows.itemsize(), "rows must be dense within a row");
    require(rows.strides(0) % rows.itemsize() == 0, "rows must be whole elements apart");
    return rows.strides(0) / rows.itemsize();
}

// bfloat16, which NumPy lacks, comes as the int16 of its bits.
template <class T>
dm2::Rows<T> as_rows(const py::array& rows, const Array<T>& scale) {
    const py::dtype type = rows.dtype();
    dm2::Element element = dm2::Element::same;
    if (!py::isinstance<Strided<T>>(rows)) {
        const bool half = type.equal(py::dtype("e")), bits = type.equal(py::dtype::of<std::int16_t>());
        require(sizeof(T) == sizeof(float) && (half || bits), "rows must be floats like scale");
        element = half ? dm2::Element::float16 : dm2::Element::bfloat16;
    }
    require(rows.ndim() == 2 && rows.shape(1) > 0 && rows.shape(1) < std::numeric_limits<std::int32_t>::max(),
            "rows must be 2-D, with at least one dimension and fewer than 2**31");
    const std::ptrdiff_t bytes = type.itemsize(), n = rows.shape(0);
    require(rows.strides(0) % bytes == 0 && rows.strides(1) % bytes == 0, "elements must be whole elements apart");
    const std::ptrdiff_t factors = scale.ndim() == 2 ? scale.shape(1) : 1;
    require((scale.ndim() == 1 || factors == 2) && scale.shape(0) == n, "scale must be (rows,) or (rows, 2)");
    return {rows.data(), n,       rows.shape(1),           rows.strides(0) / bytes,
            scale.data(), factors, rows.strides(1) / bytes, element};
}

// A method for `def`. `Class.__new__(Class)` alone makes an object of nothing, which pybind11 sees in holders only.
template <class Class, class Call, class... Args>
auto held(Call call) {
    return [call](const std::shared_ptr<Class>& self, Args... args) {
        return (self.get()->*call)(std::forward<Args>(args)...);
    };
}
template <class Class, class Result, class... Args>
auto method(Result (Class::*call)(Args...)) {
    return held<Class, decltype(call), Args...>(call);
}
template <class Class, class Result, class... Args>
auto method(Result (Class::*call)(Args...) const) {
    return held<Class, decltype(call), Args...>(call);
}

// Ten times a second at most: answer Ctrl-C and report progress. Called without the GIL.
class Poll {
public:
    explicit Poll(py::object report = py::none()) : report_(std::move(report)) {}

    void operator()(double part) {
        const auto now = std::chrono::steady_clock::now();
        if (now < next_) return;
        next_ = now + std::chrono::milliseconds(100);
        const py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (!report_.is_none()) report_(part);
    }

private:
    const py::object report_;
    std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
};

inline constexpr std::pair<const char*, dm2::Isa> kNames[] = {{"auto", dm2::Isa::automatic},
                                                       {"avx512", dm2::Isa::avx512},
                                                       {"avx2", dm2::Isa::avx2},
                                                       {"neon", dm2::Isa::neon},
                                                       {"generic", dm2::Isa::generic}};

inline const dm2::Scanner* as_scanner(const std::string& name) {
    std::string here;
    for (const auto& [known, isa] : kNames) {
        const dm2::Scanner* scanner = dm2::scanner(isa);
        if (scanner == nullptr) continue;
        if (name == known) return scanner;
        here += (here.empty() ? "" : ", ") + std::string(known);
    }
    throw std::invalid_argument("isa must be one that this machine has (" + here + "), got '" + name + "'");
}

}  // namespace bind
}  // namespace dm2
