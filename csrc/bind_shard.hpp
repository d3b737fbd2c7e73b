// Shards of rows for Python: prepared on the same folds and grids, so that those of several processes can meet.
#pragma once

#include "bind.hpp"

namespace dm2 {
namespace bind {

// The folds and grids of all shards; as a tuple of arrays it goes to other processes.
struct Frame {
    std::vector<Fold> folds;
    std::vector<Grid> grids;

    // For rows like those of a sample, (n, d), of which the first few have these k-th best distances.
    template <class T>
    static Frame of(const Array<float>& sample, const Array<T>& distances, double w1, double w2, int num_threads,
                    const std::string& isa) {
        require(sample.ndim() == 2 && sample.shape(1) > 0, "sample must be 2-D");
        const std::ptrdiff_t n = sample.shape(0), d = sample.shape(1), probes = distances.size();
        require(probes > 0 && probes <= n, "distances must be those of the first rows of the sample");
        require(n < std::numeric_limits<std::uint16_t>::max(), "sample must be fewer than 65535 rows");
        const T one = static_cast<T>(w1), other = static_cast<T>(w2);
        require(Bound::holds<T>(d, one, other), "rows have too many features");
        const Scanner& scanner = *as_scanner(isa);
        const Bound bound = Bound::of<T>(d, one, other);
        std::vector<double> l1;
        for (std::ptrdiff_t i = 0; i < probes; ++i) l1.push_back(bound.l1(distances.data()[i]));
        std::vector<float> rows(sample.data(), sample.data() + sample.size());
        const py::gil_scoped_release release;
        const DefaultArithmetic arithmetic;
        Sample sums(std::move(rows), n, d);
        Trial finest = best_clip(sums, 0, l1, true, scanner, num_threads);
        sums.fold(num_threads);
        Levels levels = choose_levels(sums, std::move(finest), l1, true, nullptr, scanner, num_threads);
        return {std::move(sums.folds), std::move(levels.grids)};
    }

    py::tuple state() const {
        py::list folded, cut;
        for (const Fold& fold : folds) folded.append(py::make_tuple(copy(fold.first), copy(fold.second), copy(fold.sign)));
        for (const Grid& grid : grids) cut.append(py::make_tuple(grid.depth, grid.step, copy(grid.offset)));
        return py::make_tuple(folded, cut);
    }
    static Frame restored(const py::tuple& state) {
        Frame frame;
        for (const py::handle part : state[0]) {
            const auto one = part.cast<py::tuple>();
            frame.folds.push_back({values<std::int32_t>(one[0]), values<std::int32_t>(one[1]), values<float>(one[2])});
        }
        for (const py::handle part : state[1]) {
            const auto one = part.cast<py::tuple>();
            frame.grids.emplace_back(one[0].cast<std::ptrdiff_t>(), one[1].cast<float>(), values<float>(one[2]));
        }
        return frame;
    }

private:
    template <class V>
    static Array<V> copy(const std::vector<V>& from) {
        return Array<V>(static_cast<py::ssize_t>(from.size()), from.data());
    }
    template <class V>
    static std::vector<V> values(const py::handle& from) {
        const auto array = from.cast<Array<V>>();
        return std::vector<V>(array.data(), array.data() + array.size());
    }
};

// Keeps the arrays that it reads alive.
template <class T>
struct Shard {
    py::array rows;
    Array<T> scale;
    Array<std::int64_t> ids;
    std::shared_ptr<Frame> frame;
    Rows<T> view;
    std::unique_ptr<Side<T>> side;

    Shard(const py::array& rows_, const Array<T>& scale_, const Array<std::int64_t>& ids_,
          std::shared_ptr<Frame> frame_, const py::object& codes, int num_threads)
        : rows(rows_), scale(scale_), ids(ids_), frame(std::move(frame_)), view(as_rows(rows, scale)) {
        require(ids.size() == view.n && view.n > 0, "ids must have one value per row");
        require(frame->folds.empty() || frame->folds[0].width() < view.d, "rows must be like those of the frame");
        if (!codes.is_none()) {
            const auto packed = codes.cast<Array<std::uint8_t>>();
            side = std::make_unique<Side<T>>(view, frame->grids);
            require(static_cast<std::size_t>(packed.size()) == side->packed_size(), "codes must be those of these rows");
            side->unpack(packed.data());
            for (const std::ptrdiff_t row : side->order) require(row >= 0 && row < view.n, "codes are damaged");
            return;
        }
        Poll poll;
        const py::gil_scoped_release release;
        const DefaultArithmetic arithmetic;
        side = std::make_unique<Side<T>>(view, frame->folds, frame->grids, num_threads, [&](double) { poll(0.0); });
    }

    Array<std::uint8_t> codes() const {
        Array<std::uint8_t> packed(static_cast<py::ssize_t>(side->packed_size()));
        side->pack(packed.mutable_data());
        return packed;
    }

    // Update the running best of both shards with the rows of the other, or that of one with its own; of two, only the
    // blocks [blocks * part / parts, blocks * (part + 1) / parts) of the first.
    static void meet(const Shard& one, Array<T>& distances, Array<std::int64_t>& indices, const Shard& other,
                     Array<T>& other_distances, Array<std::int64_t>& other_indices, double w1, double w2,
                     std::ptrdiff_t part, std::ptrdiff_t parts, int num_threads, const py::object& report) {
        const auto best = [](const Shard& shard, Array<T>& found, Array<std::int64_t>& who) {
            require(found.ndim() == 2 && who.ndim() == 2 && found.shape(0) == shard.view.n &&
                        who.shape(0) == shard.view.n && found.shape(1) > 0 && found.shape(1) == who.shape(1),
                    "distances and indices must be (rows, k)");
            return Running<T>{shard.view.n, found.shape(1), found.mutable_data(), who.mutable_data()};
        };
        require(one.frame->grids.size() == other.frame->grids.size() && one.view.d == other.view.d,
                "shards must have one frame");
        require(0 <= part && part < parts, "part must be one of the parts");
        const bool same = &one == &other;
        const Running<T> of_one = best(one, distances, indices);
        const Running<T> of_other = same ? of_one : best(other, other_distances, other_indices);
        const T a = static_cast<T>(w1), b = static_cast<T>(w2);
        const std::ptrdiff_t blocks = one.side->blocks();
        Poll poll(report);
        const py::gil_scoped_release release;
        const DefaultArithmetic arithmetic;
        Engine<T> engine(*one.side, one.ids.data(), *other.side, other.ids.data(), one.frame->grids,
                         Bound::of<T>(one.view.d, a, b), a, b, of_one, *scanner(Isa::automatic), of_other);
        engine.run(same ? 0 : blocks * part / parts, same ? blocks : blocks * (part + 1) / parts, num_threads,
                   [&](double done) { poll(done); });
    }
};

inline void define_frame(py::module_& module) {
    py::class_<Frame, std::shared_ptr<Frame>>(module, "Frame", "How rows are encoded in all shards.")
        .def(py::pickle([](const Frame& frame) { return frame.state(); }, &Frame::restored));
}

template <class T>
void define_shard(py::module_& module, const char* name) {
    module.def("frame", &Frame::of<T>, py::arg("sample").noconvert(), py::arg("distances").noconvert(), py::arg("w1"),
               py::arg("w2"), py::kw_only(), py::arg("num_threads"), py::arg("isa") = "auto",
               "The encoding for rows like a sample, whose first rows have these k-th best distances.");
    py::class_<Shard<T>>(module, name, "Some of the rows, prepared on a frame.")
        .def(py::init<const py::array&, const Array<T>&, const Array<std::int64_t>&, std::shared_ptr<Frame>,
                      const py::object&, int>(),
             py::arg("rows").noconvert(), py::arg("scale").noconvert(), py::arg("ids").noconvert(), py::arg("frame"),
             py::arg("codes") = py::none(), py::kw_only(), py::arg("num_threads"))
        .def("codes", &Shard<T>::codes, "What need not be prepared again elsewhere, as bytes.")
        .def_static("meet", &Shard<T>::meet, py::arg("one"), py::arg("distances").noconvert(),
                    py::arg("indices").noconvert(), py::arg("other"), py::arg("other_distances").noconvert(),
                    py::arg("other_indices").noconvert(), py::arg("w1"), py::arg("w2"), py::kw_only(),
                    py::arg("part") = 0, py::arg("parts") = 1, py::arg("num_threads"), py::arg("report") = py::none(),
                    "Update the running best of two shards with each other, or of one with itself, in place.");
}

}  // namespace bind
}  // namespace dm2
