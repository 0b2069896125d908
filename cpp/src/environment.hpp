// ADAPTK_ISA and ADAPTK_NUM_THREADS, which are looked at once, before anything else of the library is used.
#pragma once

#include "export.hpp"

#include <string>

namespace adaptk::detail {

// Applies them at the first call. Returns what is wrong with them, or an empty string; a wrong value changes nothing.
ADAPTK_INTERNAL_API const std::string& apply_environment();

}  // namespace adaptk::detail
