// Initial values: random and constant numbers into buffers.
#include "random_module.hpp"

#include "arguments.hpp"
#include "buffers.hpp"
#include "random.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>
#include <vector>

namespace adaptk::bindings {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;

// The memory that is filled: dense and writable.
struct Target : View {
    WorkStream work;

    explicit Target(const py::object& x) {
        const ArgName name{"x"};
        View::take(x, name, *this, work);
        check_param(*this, name);
    }

    // Calls run(backend, device, stream, error) for memory of a device.
    template <class Run> void on_device(const Run& run) {
        on_stream(work, [&] {
            detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                return run(cuda, device.id, work.stream(), error);
            });
        });
    }
};

// Shape and dtype.
py::tuple random_target(const py::object& x) {
    const Target t(x);
    py::tuple shape(t.ndim);
    for (std::int32_t i = 0; i < t.ndim; ++i) shape[std::size_t(i)] = t.shape[i];
    return py::make_tuple(shape, name_of(t.dtype));
}

void random_fill(const py::object& x, const std::string& kind, std::uint64_t seed, std::uint64_t offset, double shift,
                 double scale, double low, double high) {
    Target t(x);
    detail::RandomFill f{kind == "uniform"  ? detail::Distributed::uniform
                         : kind == "normal" ? detail::Distributed::normal
                                            : detail::Distributed::truncated,
                         seed};
    f.offset = offset;
    f.shift = shift;
    f.scale = scale;
    f.low = low;
    f.high = high;
    if (t.device.cuda) {
        t.on_device([&](const detail::CudaBackend& cuda, int device, void* stream, detail::CudaError& error) {
            return cuda.fill_random(device, stream, f, t.dtype, t.data, t.size, error);
        });
        return;
    }
    const MaybeReleaseGil released(is_long(t.size));
    detail::fill_random(f, t.dtype, t.data, t.size);
}

void random_constant(const py::object& x, double value) {
    Target t(x);
    if (t.device.cuda) {
        t.on_device([&](const detail::CudaBackend& cuda, int device, void* stream, detail::CudaError& error) {
            return cuda.fill_constant(device, stream, value, t.dtype, t.data, t.size, error);
        });
        return;
    }
    const MaybeReleaseGil released(is_long(t.size));
    detail::fill_constant(value, t.dtype, t.data, t.size);
}

// Numbers in C order of their axes, to memory that is laid out as the view.
void store_numbers(const View& v, const double* from, std::byte* data) {
    const auto bytes = std::int64_t(size_of(v.dtype));
    if (v.c_order || v.strides == nullptr || v.ndim == 0) {
        detail::store_elements(from, v.dtype, data, bytes, v.size);
        return;
    }
    // Rows along the last axis, in C order of the others.
    const std::int32_t last = v.ndim - 1;
    std::vector<std::int64_t> index(std::size_t(v.ndim), 0);
    const std::int64_t row = v.shape[last];
    for (std::int64_t done = 0; done < v.size; done += row) {
        std::int64_t offset = 0;
        for (std::int32_t i = 0; i < last; ++i) offset += index[std::size_t(i)] * v.strides[i] * v.stride_unit;
        detail::store_elements(from + done, v.dtype, data + offset, v.strides[last] * v.stride_unit, row);
        for (std::int32_t i = last; i-- > 0;) {
            if (++index[std::size_t(i)] < v.shape[i]) break;
            index[std::size_t(i)] = 0;
        }
    }
}

// An array of the same shape, rounded to the buffer's dtype.
void random_store(const py::object& x, const Doubles& values) {
    Target t(x);
    bool same = values.ndim() == t.ndim;
    for (std::int32_t i = 0; same && i < t.ndim; ++i) same = values.shape(i) == t.shape[i];
    if (!same) fail(PyExc_RuntimeError, "x: changed its shape during the call");
    if (t.size == 0) return;
    if (!t.device.cuda) {
        const MaybeReleaseGil released(is_long(t.size));
        store_numbers(t, values.data(), static_cast<std::byte*>(t.data));
        return;
    }
    std::vector<std::byte> stored(std::size_t(t.size) * size_of(t.dtype));
    {
        const MaybeReleaseGil released(is_long(t.size));
        store_numbers(t, values.data(), stored.data());
    }
    t.on_device([&](const detail::CudaBackend& cuda, int device, void* stream, detail::CudaError& error) {
        return cuda.write(device, stream, t.data, stored.data(), stored.size(), error);
    });
}

py::array_t<std::uint32_t> random_words(std::uint64_t seed, std::uint64_t stream, std::uint64_t first,
                                        std::int64_t count) {
    py::array_t<std::uint32_t> words({py::ssize_t(count), py::ssize_t(4)});
    std::uint32_t* const out = words.mutable_data();
    const MaybeReleaseGil released(is_long(count));
    detail::random_blocks_of(seed, stream, first, count, out);
    return words;
}

Doubles random_orthogonal(std::uint64_t seed, std::int64_t rows, std::int64_t columns) {
    Doubles q({py::ssize_t(rows), py::ssize_t(columns)});
    double* const out = q.mutable_data();
    const MaybeReleaseGil released(is_long(rows * columns));
    detail::random_orthogonal(seed, rows, columns, out);
    return q;
}

}  // namespace

void register_random(py::module_& m) {
    m.def("random_target", random_target, py::arg("x"));
    m.def("random_fill", random_fill, py::arg("x"), py::arg("kind"), py::arg("seed"), py::arg("offset"),
          py::arg("shift"), py::arg("scale"), py::arg("low") = 0.0, py::arg("high") = 0.0);
    m.def("random_constant", random_constant, py::arg("x"), py::arg("value"));
    m.def("random_store", random_store, py::arg("x"), py::arg("values").noconvert());
    m.def("random_words", random_words, py::arg("seed"), py::arg("stream"), py::arg("first"), py::arg("count"));
    m.def("random_orthogonal", random_orthogonal, py::arg("seed"), py::arg("rows"), py::arg("columns"));
    m.def("normal_probability", detail::normal_probability, py::arg("x"));
}

}  // namespace adaptk::bindings
