#include "rows_intake.hpp"

#include <string>

namespace adaptk::bindings {

detail::SparseMode sparse_mode_value(PyObject* value) {
    std::string known;
    if (PyUnicode_Check(value) == 0) fail(PyExc_TypeError, "sparse: expected a string, got " + type_name(value));
    const std::string text = py::handle(value).cast<std::string>();
    std::size_t mode = 0;
    for (const char* const name : detail::sparse_mode_names) {
        if (text == name) return detail::SparseMode(mode);
        known += std::string(mode++ == 0 ? "'" : ", '") + name + "'";
    }
    fail(PyExc_ValueError, "sparse: '" + text + "' is not one of " + known);
}

bool is_of_rows(PyObject* grad) {
    if (PyTuple_Check(grad)) return PyTuple_GET_SIZE(grad) == 2;
    // What NumPy's and PyTorch's arrays are asked first, and other libraries' too, is what they have.
    if (Py_TYPE(grad) == numpy_types().array) return false;
    return PyObject_HasAttrString(grad, "tocsr") != 0;
}

Integers Integers::take(const py::object& given, const std::string& name, bool written) {
    Integers out;
    out.array = given;
    if (!py::isinstance<py::array>(given)) {
        if (View::on_cuda(given, {name.c_str()}))
            fail(PyExc_ValueError, name + ": on a CUDA device, expected memory of the CPU");
        out.array = py::module_::import("adaptk._sparse").attr("integers")(given, name);
    }
    const py::array array = py::reinterpret_borrow<py::array>(out.array);
    // Not by the dtype's name, which takes longer than the step of some hundred rows.
    const py::dtype dtype = array.dtype();
    if (dtype.kind() != 'i' || (dtype.itemsize() != 8 && dtype.itemsize() != 4) || dtype.byteorder() != '=')
        fail(PyExc_TypeError, name + ": dtype " + py::str(dtype).cast<std::string>() + ", expected int32 or int64");
    if (array.ndim() != 1) fail(PyExc_ValueError, name + ": " + std::to_string(array.ndim()) + " axes, expected one");
    if (array.size() > 1 && array.strides(0) != array.itemsize())
        fail(PyExc_ValueError, name + ": not contiguous; pass np.ascontiguousarray(...) of it");
    if (reinterpret_cast<std::uintptr_t>(array.data()) % std::size_t(array.itemsize()) != 0)
        fail(PyExc_ValueError, name + ": not aligned; pass a copy of it");
    if (written && !array.writeable()) fail(PyExc_ValueError, name + ": read-only, and it is updated in place");
    out.index = {array.data(), array.itemsize() == 8, std::int64_t(array.size())};
    return out;
}

Integers Integers::read(const py::object& given, const std::string& name, const Device& device, WorkStream& work) {
    const ArgName arg{name.c_str()};
    View view;
    const DeviceIntegers there = view.take_integers(given, arg, work);
    if (!(there.device == device))
        fail(PyExc_ValueError, name + ": on " + there.device.text() + ", and the param is on " + device.text());
    Integers out;
    out.array = there.wide ? py::object(py::array_t<std::int64_t>(py::ssize_t(there.count)))
                           : py::object(py::array_t<std::int32_t>(py::ssize_t(there.count)));
    void* const to = py::reinterpret_borrow<py::array>(out.array).mutable_data();
    if (there.count > 0)
        on_stream(work, [&] {
            detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                return cuda.read(device.id, work.stream(), to, there.data, there.bytes(), error);
            });
        });
    out.index = {to, there.wide, there.count};
    return out;
}

void check_has_rows(const View& param, const ArgName& grad) {
    if (param.ndim == 0) fail(PyExc_ValueError, grad.text() + ": a gradient of rows, but the param has no axes");
    if (!param.c_order)
        fail(PyExc_ValueError, grad.text() + ": a gradient of rows, but the param is not in C order, so that its rows "
                                             "do not lie one behind the other");
}

namespace {

std::string wanted_shape(const View& param, std::int64_t count) {
    std::string text = "(" + std::to_string(count);
    for (std::int32_t i = 1; i < param.ndim; ++i) text += ", " + std::to_string(param.shape[i]);
    return text + (param.ndim == 1 ? ",)" : ")");
}

bool is_shape_of_rows(const View& values, const View& param, std::int64_t count) {
    if (values.ndim != param.ndim || values.shape[0] != count) return false;
    return std::equal(values.shape + 1, values.shape + values.ndim, param.shape + 1);
}

std::int64_t row_size_of(const View& param) {
    std::int64_t size = 1;
    for (std::int32_t i = 1; i < param.ndim; ++i) size *= param.shape[i];
    return size;
}

}  // namespace

void RowGrad::take(PyObject* grad, const ArgName& name, const View& param, detail::SparseMode mode,
                   const RuleInfo& rule, const detail::HyperValues& hyper, ParamUpdate& tensor, WorkStream& work) {
    const std::string text = name.text();
    check_has_rows(param, name);
    if (const char* const reason = detail::why_never_rows(rule))
        fail(PyExc_ValueError, text + ": a gradient of rows, and " + rule.name + " " + reason);
    py::tuple pair;
    if (PyTuple_Check(grad)) {
        pair = py::reinterpret_borrow<py::tuple>(grad);
    } else {
        py::tuple shape(param.ndim);
        for (std::int32_t i = 0; i < param.ndim; ++i) shape[std::size_t(i)] = param.shape[i];
        pair = py::module_::import("adaptk._sparse").attr("rows_of")(py::handle(grad), shape, text);
    }
    const std::string of_indices = text + ", indices";
    const py::object given = pair[0];
    const bool there = param.device.cuda && View::on_cuda(given, {of_indices.c_str()});
    indices = there ? Integers::read(given, of_indices, param.device, work) : Integers::take(given, of_indices, false);
    label = text + ", values";
    const ArgName of_values{label.c_str()};
    View::take(py::object(pair[1]), of_values, values, work);
    const std::int64_t count = indices.index.count;
    if (!(values.device == param.device)) fail_mixed(of_values, values, {"param"}, param);
    if (!is_shape_of_rows(values, param, count))
        fail(PyExc_ValueError, label + ": shape " + values.shape_text() + ", expected " + wanted_shape(param, count) +
                                   " for " + std::to_string(count) + " indices into a param of shape " +
                                   param.shape_text());
    if (!values.c_order && values.size > 1)
        fail(PyExc_ValueError, label + ": not in C order; pass np.ascontiguousarray(...) of it");
    const std::int64_t row_size = row_size_of(param);
    if (std::size_t buffer = 0; mode != detail::SparseMode::dense)
        if (const char* const reason = detail::why_no_rows(tensor, rule.buffers(), row_size, buffer))
            fail(PyExc_ValueError, std::string(buffer == 0 ? "param" : rule.states[buffer - 2].name) + ": stored as " +
                                       name_of(tensor.format[buffer]) + ", " + reason);
    std::optional<std::int64_t> wrong;
    {
        const MaybeReleaseGil released(is_long(values.size));
        wrong = update.assign(indices.index, {values.data, values.dtype}, param.shape[0], row_size);
    }
    if (wrong)
        fail(PyExc_ValueError, text + ", indices: number " + std::to_string(*wrong) + " is " +
                                   std::to_string(indices.index.at(*wrong)) + ", expected in [0, " +
                                   std::to_string(param.shape[0]) + "), the rows of the param");
    update.mode = mode;
    tensor.rows = &update;
    tensor.buffer[1] = nullptr;
    tensor.format[1] = compute_format(tensor.format[0]);
    if (mode == detail::SparseMode::catch_up)
        if (const char* const reason = detail::why_no_catch_up(rule, hyper))
            fail(PyExc_ValueError, std::string("sparse: 'catch_up': ") + rule.name + " " + reason);
}

void RowGrad::take_whole(const View& param, ParamUpdate& tensor) {
    update.mode = detail::SparseMode::catch_up;
    update.whole = true;
    update.assign(param.shape[0], row_size_of(param));
    tensor.rows = &update;
}

void RowGrad::take_last_step(const Integers& last_step, const std::string& name, const RuleInfo& rule,
                             const detail::HyperValues& hyper) {
    if (const char* const reason = detail::why_no_catch_up(rule, hyper))
        fail(PyExc_ValueError, std::string("sparse: 'catch_up': ") + rule.name + " " + reason);
    if (!last_step.index.wide) fail(PyExc_TypeError, name + ": dtype int32, expected int64");
    if (last_step.index.count != update.rows())
        fail(PyExc_ValueError, name + ": " + std::to_string(last_step.index.count) + " numbers, expected " +
                                   std::to_string(update.rows()) + ", one for each row of the param");
    update.last_step = static_cast<std::int64_t*>(const_cast<void*>(last_step.index.data));
}

}  // namespace adaptk::bindings
