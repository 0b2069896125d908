// The type of a number in device memory.
#pragma once

#include <cstdint>

namespace adaptk::detail {

enum class ScalarType : std::uint8_t { f32, f64, i32, i64 };

}  // namespace adaptk::detail
