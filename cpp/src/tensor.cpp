#include "tensor.hpp"

#include "compiler.hpp"

#include <iterator>
#include <vector>

namespace adaptk::detail {
namespace {

using Kind = Problem::Kind;

// As Python writes a tuple.
template <class Value> std::string tuple_text(std::int32_t n, const Value& value) {
    std::string s(1, '(');
    for (std::int32_t i = 0; i < n; ++i) {
        if (i > 0) s += ", ";
        s += std::to_string(value(i));
    }
    if (n == 1) s += ',';
    return s += ')';
}

// An axis with more than one element. The strides of others have no meaning.
struct Axis {
    std::int64_t stride, extent;
};

std::optional<Problem> access_problem(const TensorView& v) {
    if (v.read_only) return Problem{Kind::value, "read-only, but it is updated in place"};
    return {};
}

Problem place_problem(const TensorView& v, const TensorView& param) {
    if (!(v.device == param.device))
        return {Kind::value, "on " + v.device.text() + ", expected " + param.device.text() + " like its param"};
    if (!v.same_shape(param))
        return {Kind::value, "shape " + v.shape_text() + ", expected " + param.shape_text() + " like its param"};
    return {Kind::value,
            "strides " + v.strides_text() + ", expected the layout of its param (" + param.strides_text() + ")"};
}

}  // namespace

bool TensorView::same_long_strides(const TensorView& other) const {
    if (strides == nullptr || other.strides == nullptr) return false;
    const auto a = std::int64_t(size_of(dtype));
    const auto b = std::int64_t(size_of(other.dtype));
    for (std::int32_t i = 0; i < ndim; ++i) {
        if (shape[i] != 1 && strides[i] * stride_unit * b != other.strides[i] * other.stride_unit * a) return false;
    }
    return true;
}

bool TensorView::dense_axes() const {
    std::vector<Axis> axes;
    for (std::int32_t i = 0; i < ndim; ++i)
        if (shape[i] != 1) axes.push_back({strides[i] * stride_unit, shape[i]});
    std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
    auto expected = std::int64_t(size_of(dtype));
    for (const Axis& a : axes) {
        if (a.stride != expected) return false;
        expected *= a.extent;
    }
    return true;
}

std::string TensorView::shape_text() const {
    return tuple_text(ndim, [this](std::int32_t i) { return shape[i]; });
}

std::string TensorView::strides_text() const {
    if (strides == nullptr) return "of C order";
    return tuple_text(ndim, [this](std::int32_t i) { return strides[i] * stride_unit; }) + " in bytes";
}

std::string dtype_text(const adaptk_dtype& t) {
    static const char* const codes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    // DLPack's codes of formats that have a name of their own, from 7 on.
    static const char* const formats[] = {"float8_e3m4",     "float8_e4m3",   "float8_e4m3b11fnuz", "float8_e4m3fn",
                                          "float8_e4m3fnuz", "float8_e5m2",   "float8_e5m2fnuz",    "float8_e8m0fnu",
                                          "float6_e2m3fn",   "float6_e3m2fn", "float4_e2m1fn"};
    std::string text;
    if (t.code < std::size(codes)) {
        text = codes[t.code] + std::to_string(t.bits);
    } else if (t.code - std::size(codes) < std::size(formats)) {
        text = formats[t.code - std::size(codes)];
    } else {
        text = "of DLPack type code " + std::to_string(t.code) + " with " + std::to_string(t.bits) + " bits";
    }
    if (t.lanes != 1) text.append("x").append(std::to_string(t.lanes));
    return text;
}

bool element_type(const adaptk_dtype& t, bool codes, Format& out) {
    if (t.lanes != 1) return false;
    for (const FormatInfo& f : formats())
        if (f.dlpack_code == t.code && f.dlpack_bits == t.bits) return out = f.id, codes || f.block == 1;
    // The second buffer of a split param may have a dtype that no format has. Its size is the same.
    for (const FormatInfo& f : formats())
        if (codes && f.split && f.side_code == t.code && f.side_bits == t.bits && f.side_bits == 8 * f.bytes)
            return out = f.id, true;
    return false;
}

std::optional<Problem> read_tensor(const adaptk_tensor& t, TensorView& out, bool codes) {
    if (!element_type(t.dtype, codes, out.dtype))
        return Problem{Kind::type, "dtype " + dtype_text(t.dtype) + ", " + wanted_types};
    if (t.ndim < 0 || (t.ndim > 0 && t.shape == nullptr))
        return Problem{Kind::buffer, "the DLPack export has no shape"};
    const auto address = reinterpret_cast<std::uintptr_t>(t.data);
    if (t.byte_offset > std::uint64_t(INT64_MAX) || address + t.byte_offset < address)
        return Problem{Kind::value, "impossible byte_offset " + std::to_string(t.byte_offset)};
    out.data = reinterpret_cast<void*>(address + std::uintptr_t(t.byte_offset));
    out.ndim = t.ndim;
    out.shape = t.shape;
    out.strides = t.strides;
    out.stride_unit = std::int64_t(size_of(out.dtype));
    out.read_only = false;
    out.size = 1;
    out.c_order = true;
    for (std::int32_t i = out.ndim - 1; i >= 0; --i) {
        if (out.shape[i] < 0 || product_overflows(out.size, out.shape[i], out.size) || out.size > INT64_MAX / 8)
            return Problem{Kind::value, "impossible shape " + out.shape_text()};
    }
    if (out.strides != nullptr) {
        std::int64_t expected = 1;
        for (std::int32_t i = out.ndim - 1; i >= 0; --i) {
            // Products with element sizes must not overflow later.
            if (out.strides[i] > INT64_MAX / 64 || out.strides[i] < -(INT64_MAX / 64))
                return Problem{Kind::value, "not contiguous: impossible stride " + std::to_string(out.strides[i]) +
                                                " of axis " + std::to_string(i)};
            if (out.shape[i] != 1 && out.strides[i] != expected) out.c_order = false;
            expected *= out.shape[i];
        }
    }
    if (out.size == 0) out.c_order = true;
    if (out.size > 0 && t.data == nullptr) return Problem{Kind::value, no_memory};
    if (out.end() < out.begin()) return Problem{Kind::value, "reaches beyond the end of memory"};
    if (out.device.cuda && out.begin() % size_of(out.dtype) != 0)
        return Problem{Kind::value, "not on a multiple of its item size, which CUDA needs"};
    return {};
}

Problem why_no_param(const TensorView& v) {
    if (auto problem = access_problem(v)) return *problem;
    return {Kind::value, "not contiguous: shape " + v.shape_text() + " with strides " + v.strides_text() +
                             " does not fill one block of memory"};
}

Problem why_no_grad(const TensorView& v, const TensorView& param) { return place_problem(v, param); }

Problem why_no_state(const TensorView& v, const TensorView& param) {
    const Format wanted = compute_format(param.dtype);
    if (!is_state_format(v.dtype, param.dtype)) {
        std::string text = std::string("dtype ") + dtype_name(v.dtype) + ", expected " + name_of(wanted) +
                           " beside a " + name_of(param.dtype) + " param";
        for (const FormatInfo& f : formats())
            if (f.id != wanted && f.compute == wanted && f.of_states && is_plain(f.id))
                text += std::string(", or ") + f.name;
        return {Kind::type, text};
    }
    if (auto problem = access_problem(v)) return *problem;
    if (is_packed(v.dtype) && v.device == param.device)
        return {Kind::value, "shape " + v.shape_text() + ", expected a row of " +
                                 std::to_string(stored_count(v.dtype, param.size)) + " for the " +
                                 std::to_string(param.size) + " elements of its param, as " + name_of(v.dtype) +
                                 " has " + std::to_string(1 << info_of(v.dtype).packed_bits) + " in each"};
    return place_problem(v, param);
}

std::optional<Problem> why_no_param_of_rows(const TensorView& param) {
    if (!param.c_order)
        return Problem{Kind::value, "strides " + param.strides_text() +
                                        ", expected C order, where rows lie one behind the other: the rule keeps one "
                                        "number for each row"};
    return {};
}

std::optional<Problem> why_no_lines(const TensorView& param) {
    if (param.c_order) return {};
    return Problem{Kind::value, "shape " + param.shape_text() + " with strides " + param.strides_text() +
                                    ", expected C order, for the rule looks at rows and columns"};
}

std::optional<Problem> why_no_numbers(const TensorView& v, const TensorView& param, Per per) {
    const Format wanted = compute_format(param.dtype);
    if (v.dtype != wanted)
        return Problem{Kind::type, std::string("dtype ") + dtype_name(v.dtype) + ", expected " + name_of(wanted) +
                                       " beside a " + name_of(param.dtype) + " param"};
    if (auto problem = access_problem(v)) return problem;
    const std::int32_t ndim = per == Per::tensor ? 0 : per == Per::slice ? 1 : param.ndim;
    const std::int32_t one = per == Per::row ? ndim - 1 : ndim - 2;  // the axis of which there is one; below 0: none
    const auto extent = [&](std::int32_t i) {
        return per == Per::slice ? rows_of(param) : i == one ? 1 : param.shape[i];
    };
    bool same = v.ndim == ndim;
    for (std::int32_t i = 0; same && i < ndim; ++i) same = v.shape[i] == extent(i);
    if (!same) {
        const char* const each = per == Per::tensor ? "all" : per == Per::column ? "each column" : "each row";
        return Problem{Kind::value, "shape " + v.shape_text() + ", expected " + tuple_text(ndim, extent) +
                                        ": one number for " + each + " of a param of shape " + param.shape_text()};
    }
    if (!(v.device == param.device))
        return Problem{Kind::value, "on " + v.device.text() + ", expected " + param.device.text() + " like its param"};
    if (!v.c_order) return Problem{Kind::value, "strides " + v.strides_text() + ", expected C order"};
    return {};
}

std::optional<Problem> read_as(const FormatInfo& format, TensorView& v) {
    const FormatInfo& found = info_of(v.dtype);
    if (found.split || found.dlpack_code != format.dlpack_code || found.dlpack_bits != format.dlpack_bits)
        return Problem{Kind::type, std::string("dtype ") + dtype_name(v.dtype) + ", which is not that of the format " +
                                       format.name};
    v.dtype = format.id;
    return {};
}

std::string unknown_format(const char* name) {
    std::string known;
    for (const FormatInfo& f : formats()) known += std::string(known.empty() ? "" : ", ") + f.name;
    return std::string("unknown format '") + name + "'; there are " + known;
}

const char* dtype_name(Format dtype) { return info_of(dtype).split ? "int16" : name_of(dtype); }

std::optional<Problem> store_param_as(ParamFormat wanted, const TensorView& param, Format& out) {
    const FormatInfo& f = info_of(param.dtype);
    out = f.as_param[std::size_t(wanted)];
    if (wanted == ParamFormat::plain || f.bytes > 2 || out != f.id) return {};
    return Problem{Kind::type, std::string("dtype ") + f.name + " cannot be stored as '" +
                                   param_format_names[std::size_t(wanted)] + "', which is for bfloat16"};
}

std::optional<Problem> why_no_side(const TensorView& side, const TensorView& param, Format format) {
    const FormatInfo& f = info_of(format);
    const FormatInfo& of_side = info_of(side.dtype);
    const bool same = of_side.split ? of_side.side_code == f.side_code && of_side.side_bits == f.side_bits
                                    : of_side.dlpack_code == f.side_code && of_side.dlpack_bits == f.side_bits;
    if (!same)
        return Problem{Kind::type, std::string("dtype ") + dtype_name(side.dtype) + ", expected " +
                                       dtype_text({f.side_code, f.side_bits, 1}) + " beside a " + name_of(f.dtype) +
                                       " param that is stored as " + f.name};
    if (auto problem = access_problem(side)) return problem;
    if (!lies_beside(side, param)) return place_problem(side, param);
    if (side.begin() % (f.side_bits / 8u) != 0) return Problem{Kind::value, "not on a multiple of 2 bytes"};
    return {};
}

std::optional<Problem> why_no_scales(const TensorView& scales, const TensorView& state) {
    const std::int64_t elements = state.size << info_of(state.dtype).packed_bits;
    const std::size_t count = side_count(state.dtype, elements);
    if (scales.dtype != Format::float32)
        return Problem{Kind::type, std::string("dtype ") + name_of(scales.dtype) + ", expected float32"};
    if (auto problem = access_problem(scales)) return problem;
    if (!(scales.device == state.device))
        return Problem{Kind::value,
                       "on " + scales.device.text() + ", expected " + state.device.text() + " like the codes"};
    if (scales.ndim != 1 || std::size_t(scales.size) != count)
        return Problem{Kind::value, "shape " + scales.shape_text() + ", expected (" + std::to_string(count) +
                                        ",): one for each " + std::to_string(info_of(state.dtype).block) +
                                        " of the state's " + std::to_string(elements) + " elements"};
    if (!scales.c_order) return Problem{Kind::value, "strides " + scales.strides_text() + ", expected a row"};
    if (scales.begin() % alignof(float) != 0) return Problem{Kind::value, "not on a multiple of 4 bytes"};
    return {};
}

}  // namespace adaptk::detail
