// Shards of rows for Python: prepared on the same folds and grids, so that those of several processes can meet.
#pragma once

#include "bind.hpp"
#include "index.hpp"

namespace dm2 {
namespace bind {

template <class T>
void require_bound(std::ptrdiff_t d, T w1, T w2) {
    require(std::isfinite(w1) && std::isfinite(w2), "w1 and w2 must be finite");
    require(Bound::holds<T>(d, w1, w2), "rows have too many features");
}

// The folds and grids of all shards; as a tuple of arrays it goes to other processes.
struct Frame {
    std::vector<Fold> folds;
    std::vector<Grid> grids;

    // For rows like those of a sample, (n, d), of which the first few have these k-th best distances.
    template <class T>
    static Frame of(const Array<float>& sample, const Array<T>& distances, double w1, double w2, bool graph,
                    int num_threads, const std::string& isa) {
        require(sample.ndim() == 2 && sample.shape(1) > 0 && sample.shape(1) < std::numeric_limits<std::int32_t>::max(),
                "sample must be 2-D, with at least one dimension and fewer than 2**31");
        const std::ptrdiff_t n = sample.shape(0), d = sample.shape(1), probes = distances.size();
        require(probes > 0 && probes <= n, "distances must be those of the first rows of the sample");
        require(n < std::numeric_limits<std::uint16_t>::max(), "sample must be fewer than 65535 rows");
        require_aligned({sample, distances});
        require_numbers(distances);
        const T one = static_cast<T>(w1), other = static_cast<T>(w2);
        require_bound(d, one, other);
        const Scanner& scanner = *as_scanner(isa);
        const Bound bound = Bound::of<T>(d, one, other);
        std::vector<double> l1;
        for (std::ptrdiff_t i = 0; i < probes; ++i) l1.push_back(bound.l1(distances.data()[i]));
        std::vector<float> rows(sample.data(), sample.data() + sample.size());
        const py::gil_scoped_release release;
        const DefaultArithmetic arithmetic;
        if (graph) {
            Encoding encoding(std::move(rows), n, d, l1, scanner, num_threads);
            return {std::move(encoding.folds), std::move(encoding.grids)};
        }
        Sample sums(std::move(rows), n, d);
        Trial finest = best_clip(sums, 0, l1, true, scanner, num_threads);
        sums.fold(num_threads);
        Levels levels = choose_levels(sums, std::move(finest), l1, true, nullptr, scanner, num_threads);
        return {std::move(sums.folds), std::move(levels.grids)};
    }

    py::tuple state() const {
        py::list folded, cut;
        for (const Fold& fold : folds)
            folded.append(py::make_tuple(copy(fold.first), copy(fold.second), copy(fold.sign)));
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

    // Folds and grids of other shapes than `of` makes for rows of d dimensions would lead out of the codes; other folds
    // would drop neighbours. Where a grid begins is all the same.
    void require_for(std::ptrdiff_t d) const {
        const std::vector<std::ptrdiff_t> widths = sum_widths(d);
        require(folds.size() + 1 == widths.size(), "rows must be like those of the frame");
        for (std::size_t f = 0; f < folds.size(); ++f) require_whole(folds[f], widths[f], widths[f + 1]);
        require(0 < grids.size() && grids.size() <= 1 + kWideLevels && grids[0].bytes == kCode, "grids are damaged");
        for (const Grid& grid : grids)
            require(0 <= grid.depth && grid.depth < static_cast<std::ptrdiff_t>(widths.size()) &&
                        grid.bytes == code_bytes(widths[grid.depth]) && grid.step >= std::ldexp(1.0f, -60),
                    "grids are damaged");
    }
    bool operator==(const Frame& other) const {
        const auto fold = [](const Fold& a, const Fold& b) {
            return std::tie(a.first, a.second, a.sign) == std::tie(b.first, b.second, b.sign);
        };
        const auto grid = [](const Grid& a, const Grid& b) {
            return std::tie(a.depth, a.step, a.offset) == std::tie(b.depth, b.step, b.offset);
        };
        return std::equal(folds.begin(), folds.end(), other.folds.begin(), other.folds.end(), fold) &&
               std::equal(grids.begin(), grids.end(), other.grids.begin(), other.grids.end(), grid);
    }

private:
    // Each column is in one group, once, with a sign.
    static void require_whole(const Fold& fold, std::ptrdiff_t from, std::ptrdiff_t to) {
        const std::size_t width = static_cast<std::size_t>(to);
        require(fold.first.size() == width && fold.second.size() == width && fold.sign.size() == width,
                "rows must be like those of the frame");
        std::vector<char> seen(static_cast<std::size_t>(from), 0);
        const auto take = [&](std::int32_t column) {
            require(0 <= column && column < from && !seen[column], "folds are damaged");
            seen[column] = 1;
        };
        for (std::size_t j = 0; j < width; ++j) {
            const bool pair = fold.sign[j] != 0;
            require(std::abs(fold.sign[j]) == (pair ? 1 : 0) && (pair || fold.second[j] == fold.first[j]),
                    "folds are damaged");
            take(fold.first[j]);
            if (pair) take(fold.second[j]);
        }
        require(std::all_of(seen.begin(), seen.end(), [](char once) { return once; }), "folds are damaged");
    }

    template <class V>
    static Array<V> copy(const std::vector<V>& from) {
        return Array<V>(static_cast<py::ssize_t>(from.size()), from.data());
    }
    template <class V>
    static std::vector<V> values(const py::handle& from) {
        const auto array = from.cast<Array<V>>();
        require_aligned({array});
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
        require_aligned({rows, scale, ids});
        require(ids.size() == view.n && view.n > 0, "ids must have one value per row");
        require(view.n < std::ptrdiff_t{1} << 31, "rows must be fewer than 2**31");
        frame->require_for(view.d);
        if (!codes.is_none()) {
            const auto packed = codes.cast<Array<std::uint8_t>>();
            side = std::make_unique<Side<T>>(view, frame->grids);
            const std::size_t size = static_cast<std::size_t>(packed.size());
            require(size == side->packed_size(), "codes must be those of these rows");
            side->unpack(packed.data());
            require_whole(*side);
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
    static void meet(const std::shared_ptr<Shard>& one_, Array<T>& distances, Array<std::int64_t>& indices,
                     const std::shared_ptr<Shard>& other_, Array<T>& other_distances,
                     Array<std::int64_t>& other_indices, double w1, double w2, std::ptrdiff_t part,
                     std::ptrdiff_t parts, int num_threads, const py::object& report) {
        const Shard &one = *one_, &other = *other_;
        const bool same = &one == &other;
        const auto best = [&](const Shard& shard, Array<T>& found, Array<std::int64_t>& who) {
            require(found.ndim() == 2 && who.ndim() == 2 && found.shape(0) == shard.view.n &&
                        who.shape(0) == shard.view.n && found.shape(1) > 0 && found.shape(1) == who.shape(1),
                    "distances and indices must be (rows, k)");
            require_aligned({found, who});
            require_apart(found, {one.rows, one.scale, one.ids, other.rows, other.scale, other.ids, who});
            require_apart(who, {one.rows, one.scale, one.ids, other.rows, other.scale, other.ids});
            require_numbers(found);
            return Running<T>{shard.view.n, found.shape(1), found.mutable_data(), who.mutable_data()};
        };
        require(one.view.d == other.view.d && (one.frame == other.frame || *one.frame == *other.frame),
                "shards must have one frame");
        require(0 <= part && part < parts && parts < std::ptrdiff_t{1} << 31, "part must be one of the parts");
        const Running<T> of_one = best(one, distances, indices);
        const Running<T> of_other = same ? of_one : best(other, other_distances, other_indices);
        if (!same) {
            require_apart(distances, {other_distances, other_indices});
            require_apart(indices, {other_distances, other_indices});
        }
        const T a = static_cast<T>(w1), b = static_cast<T>(w2);
        require_bound(one.view.d, a, b);
        const std::ptrdiff_t blocks = one.side->blocks();
        Poll poll(report);
        const py::gil_scoped_release release;
        const DefaultArithmetic arithmetic;
        Engine<T> engine(*one.side, one.ids.data(), *other.side, other.ids.data(), one.frame->grids,
                         Bound::of<T>(one.view.d, a, b), a, b, of_one, *scanner(Isa::automatic), of_other);
        engine.run(same ? 0 : blocks * part / parts, same ? blocks : blocks * (part + 1) / parts, num_threads,
                   [&](double done) { poll(done); });
    }

private:
    // Codes that came as bytes: each row has one place, since a place is written by who holds its block.
    static void require_whole(const Side<T>& side) {
        std::vector<char> seen(side.order.size(), 0);
        for (const std::ptrdiff_t row : side.order) {
            require(0 <= row && row < side.rows.n && !seen[row], "codes are damaged");
            seen[row] = 1;
        }
        for (const std::vector<float>& errors : side.errors)
            for (const float error : errors) require(!(error < 0), "codes are damaged");
    }
};

inline void define_frame(py::module_& module) {
    py::class_<Frame, std::shared_ptr<Frame>>(module, "Frame", "How rows are encoded in all shards.")
        .def(py::pickle(method(&Frame::state), &Frame::restored));
}

template <class T>
void define_shard(py::module_& module, const char* name) {
    module.def("frame", &Frame::of<T>, py::arg("sample").noconvert(), py::arg("distances").noconvert(), py::arg("w1"),
               py::arg("w2"), py::kw_only(), py::arg("graph") = false, py::arg("num_threads"), py::arg("isa") = "auto",
               "The encoding, of exact search or a graph, for rows like a sample, whose first rows have these k-th best distances.");
    py::class_<Shard<T>, std::shared_ptr<Shard<T>>>(module, name, "Some of the rows, prepared on a frame.")
        .def(py::init<const py::array&, const Array<T>&, const Array<std::int64_t>&, std::shared_ptr<Frame>,
                      const py::object&, int>(),
             py::arg("rows").noconvert(), py::arg("scale").noconvert(), py::arg("ids").noconvert(),
             py::arg("frame").none(false), py::arg("codes") = py::none(), py::kw_only(), py::arg("num_threads"))
        .def("codes", method(&Shard<T>::codes), "What need not be prepared again elsewhere, as bytes.")
        .def_static("meet", &Shard<T>::meet, py::arg("one").none(false), py::arg("distances").noconvert(),
                    py::arg("indices").noconvert(), py::arg("other").none(false),
                    py::arg("other_distances").noconvert(), py::arg("other_indices").noconvert(), py::arg("w1"),
                    py::arg("w2"), py::kw_only(),
                    py::arg("part") = 0, py::arg("parts") = 1, py::arg("num_threads"), py::arg("report") = py::none(),
                    "Update the running best of two shards with each other, or of one with itself, in place.");
}

}  // namespace bind
}  // namespace dm2
