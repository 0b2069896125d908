// A tensor's memory as the step driver needs it, and what has to hold of it: the same for Python's buffers and for the
// C interface. The usual case is inline and short; what is wrong is found out and put into words elsewhere.
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

// Where memory is: where the CPU reads it, or on a CUDA device.
struct Device {
    bool cuda = false;
    int id = 0;
    bool operator==(const Device&) const = default;
    std::string text() const { return cuda ? "cuda:" + std::to_string(id) : "cpu"; }
};

// Why a tensor is not accepted, to be read behind the name of the argument and a colon.
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
    std::int64_t stride_unit = 1;           // bytes that a stride of 1 stands for
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
    // Every element of one block of memory exactly once, in some order of the axes.
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

// The first format with elements of this dtype, for others are named by their users; codes, and what lies beside
// params, if they are asked for.
ADAPTK_INTERNAL_API bool element_type(const adaptk_dtype& t, bool codes, Format& out);
// Fills in everything but the device, which is there already. Codes, which have scales beside them, if they are asked
// for.
ADAPTK_INTERNAL_API std::optional<Problem> read_tensor(const adaptk_tensor& t, TensorView& out, bool codes = false);

// Of a rule that looks at rows and columns, whose param has to be in C order.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_lines(const TensorView& param);
// A state that is not for each element: numbers in C order, of the param's shape with 1 in the place of what there is
// one number for: (..., 1) for each row, (..., 1, columns) for each column, () for each tensor.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_numbers(const TensorView& v, const TensorView& param, Per per);

// The order of complaints is: type, access, shape, layout.
ADAPTK_INTERNAL_API Problem why_no_param(const TensorView& v);
ADAPTK_INTERNAL_API Problem why_no_grad(const TensorView& v, const TensorView& param);
ADAPTK_INTERNAL_API Problem why_no_state(const TensorView& v, const TensorView& param);

inline bool lies_beside(const TensorView& v, const TensorView& param) {
    return v.device == param.device && v.same_shape(param) && v.same_strides(param);
}

inline bool is_param(const TensorView& v) { return !v.read_only && v.dense(); }

// Of any dtype: it is brought to the one that is computed in.
inline bool is_grad_of(const TensorView& v, const TensorView& param) { return lies_beside(v, param); }

// Data whose format is named beside them, of those with its dtype.
ADAPTK_INTERNAL_API std::optional<Problem> read_as(const FormatInfo& format, TensorView& v);
// To be read behind the name of the argument and a colon.
ADAPTK_INTERNAL_API std::string unknown_format(const char* name);

// That of a buffer without a format of its own, as a view has it.
ADAPTK_INTERNAL_API const char* dtype_name(Format dtype);

// The format of a param that is wanted to be stored so; params of 32 and 64 bits are stored as they are.
ADAPTK_INTERNAL_API std::optional<Problem> store_param_as(ParamFormat wanted, const TensorView& param, Format& out);
// What lies beside the elements of a param in a split format.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_side(const TensorView& side, const TensorView& param, Format format);

// The float32 numbers beside the codes of `state`, in a row.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_scales(const TensorView& scales, const TensorView& state);

// Of the format that is computed in, or one that is stored in its place.
inline bool is_state_format(Format state, Format param) {
    return info_of(state).compute == compute_format(param) && info_of(state).of_states;
}

// As the param, or a row of what its elements are packed into.
inline bool state_lies_beside(const TensorView& v, const TensorView& param) {
    if (!is_packed(v.dtype)) return lies_beside(v, param);
    return v.device == param.device && v.ndim == 1 && v.size == stored_count(v.dtype, param.size) && v.c_order;
}

inline bool is_state_of(const TensorView& v, const TensorView& param) {
    return is_state_format(v.dtype, param.dtype) && !v.read_only && state_lies_beside(v, param);
}

// How many rows a param has: what its first axis counts, and one without axes is a row.
inline std::int64_t rows_of(const TensorView& param) { return param.ndim == 0 ? 1 : param.shape[0]; }

// Of rules that keep one number for each row. A param's other states may be stored in blocks that rows do not begin:
// why_no_rows() in rows.hpp.
ADAPTK_INTERNAL_API std::optional<Problem> why_no_param_of_rows(const TensorView& param);

}  // namespace adaptk::detail
