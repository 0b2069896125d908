// Storage types of parameters and gradients.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

enum class DType : std::uint8_t { f32, f64, bf16, f16 };

constexpr std::size_t size_of(DType t) {
    switch (t) {
    case DType::f32: return 4;
    case DType::f64: return 8;
    default: return 2;
    }
}

constexpr const char* name_of(DType t) {
    switch (t) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::bf16: return "bfloat16";
    default: return "float16";
    }
}

// The type that a parameter is computed in, which is that of its states.
constexpr DType compute_type(DType param) { return param == DType::f64 ? DType::f64 : DType::f32; }

// Bits of the significand: what "of lower precision" compares.
constexpr int precision(DType t) {
    switch (t) {
    case DType::f32: return 24;
    case DType::f64: return 53;
    case DType::f16: return 11;
    default: return 8;
    }
}

}  // namespace adaptk::detail
