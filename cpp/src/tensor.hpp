// A tensor's memory as the step driver needs it, and the conditions on it, which are the same for Python's buffers and
// the C interface. The usual case is inline and short; errors are found and worded out of line.
#pragma once

#include "export.hpp"
#include "format.hpp"

#include "adaptk/adaptk.h"
#include "adaptk/rule.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace adaptk::detail {

// Where memory is: in CPU memory or on a CUDA device.
struct Device {
    bool cuda = false;
    int id = 0;
    bool operator==(const Device&) const = default;
    std::string text() const { return cuda ? "cuda:" + std::to_string(id) : "cpu"; }
};

// Why a tensor is not accepted: the message after the argument's name and a colon.
struct Problem {
    enum class Kind { type, value, buffer };
    Kind kind;
    std::string text;
};

struct TensorView {
    void* data = nullptr;
    std::int64_t size = 0;
    const std::int64_t* shape = nullptr;
    const std::int64_t* strides = nullptr;  // null: C order
    std::int64_t stride_unit = 1;           // bytes of a stride of 1
    std::int32_t ndim = 0;
    Format dtype = Format::float32;
    Device device;
    bool read_only = false;
    bool c_order = false;

    std::uintptr_t begin() const { return reinterpret_cast<std::uintptr_t>(data); }
    std::uintptr_t end() const { return begin() + std::uintptr_t(size) * size_of(dtype); }
    bool same_shape(const TensorView& other) const {
        return ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
    }
    bool same_strides(const TensorView& other) const { return (c_order && other.c_order) || same_long_strides(other); }
    // Whether the tensor has every element of one block of memory exactly once, in some order of the axes.
    bool dense() const { return c_order || size <= 1 || strides == nullptr || dense_axes(); }
    ADAPTK_INTERNAL_API std::string shape_text() const;
    ADAPTK_INTERNAL_API std::string strides_text() const;

  private:
    ADAPTK_INTERNAL_API bool same_long_strides(const TensorView& other) const;
    ADAPTK_INTERNAL_API bool dense_axes() const;
};

inline constexpr std::uint8_t code_int = 0;
inline constexpr std::uint8_t code_uint = 1;
inline constexpr std::uint8_t code_float = 2;
inline constexpr std::uint8_t code_bfloat = 4;
inline constexpr std::uint8_t code_float8_e4m3fn = 10;
inline constexpr std::uint8_t code_float8_e5m2 = 12;

inline constexpr const char* wanted_types =
    "expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2";
inline constexpr const char* no_memory =
    "has no memory of its own (a meta, fake or wrapped tensor, or one whose storage was freed?)";

ADAPTK_INTERNAL_API std::string dtype_text(const adaptk_dtype& t);

// The first format with elements of this dtype; callers name other formats. `codes`: dtypes of codes and of second
// buffers of params are accepted too.
ADAPTK_INTERNAL_API bool element_type(const adaptk_dtype& t, bool codes, Format& out);
// Sets everything except the device, which is set already. `codes`: codes, which have scales in a second buffer, are
// accepted too.
ADAPTK_INTERNAL_API std::optional<Problem> read_tensor(const adaptk_tensor& t, TensorView& out, bool codes = false);

// For a rule that uses rows and columns, whose param must be in C order.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_lines(const TensorView& param);
// For a state that does not have a number for each element. It is in C order, with the shape (..., 1) for one number
// per row, (..., 1, columns) per column, and () per tensor; "..." is that of the param.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_numbers(const TensorView& v, const TensorView& param, Per per);

// The order of complaints is: type, access, shape, layout.
ADAPTK_INTERNAL_API Problem why_no_param(const TensorView& v);
ADAPTK_INTERNAL_API Problem why_no_grad(const TensorView& v, const TensorView& param);
ADAPTK_INTERNAL_API Problem why_no_state(const TensorView& v, const TensorView& param);

inline bool lies_beside(const TensorView& v, const TensorView& param) {
    return v.device == param.device && v.same_shape(param) && v.same_strides(param);
}

inline bool is_param(const TensorView& v) { return !v.read_only && v.dense(); }

// Any dtype is accepted: it is converted to the compute type.
inline bool is_grad_of(const TensorView& v, const TensorView& param) { return lies_beside(v, param); }

// For data with a named format, which must have the format's dtype.
ADAPTK_INTERNAL_API std::optional<Problem> read_as(const FormatInfo& format, TensorView& v);
// The message after the argument's name and a colon.
ADAPTK_INTERNAL_API std::string unknown_format(const char* name);

// The name of the dtype of a buffer without a named format.
ADAPTK_INTERNAL_API const char* dtype_name(Format dtype);

// The format of a param that is to be stored as `wanted`; params of 32 and 64 bits keep their format.
ADAPTK_INTERNAL_API std::optional<Problem> store_param_as(ParamFormat wanted, const TensorView& param, Format& out);
// For the second buffer of a param in a split format.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_side(const TensorView& side, const TensorView& param, Format format);

// For the float32 scales of the codes of `state`, a 1-D array.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_scales(const TensorView& scales, const TensorView& state);

// Whether a state may have this format: the compute type, or one that is stored instead of it.
inline bool is_state_format(Format state, Format param) {
    return info_of(state).compute == compute_format(param) && info_of(state).of_states;
}

// The layout of the param, or a 1-D array if elements are packed.
inline bool has_state_layout(const TensorView& v, const TensorView& param) {
    if (!is_packed(v.dtype)) return lies_beside(v, param);
    return v.device == param.device && v.ndim == 1 && v.size == stored_count(v.dtype, param.size) && v.c_order;
}

inline bool is_state_of(const TensorView& v, const TensorView& param) {
    return is_state_format(v.dtype, param.dtype) && !v.read_only && has_state_layout(v, param);
}

// How many rows a param has: the length of its first axis, or 1 without axes.
inline std::int64_t rows_of(const TensorView& param) { return param.ndim == 0 ? 1 : param.shape[0]; }

// For rules that keep one number for each row. A param's other states may be stored in blocks that do not begin with
// rows: see why_no_rows() in rows.hpp.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_param_of_rows(const TensorView& param);

}  // namespace adaptk::detail
