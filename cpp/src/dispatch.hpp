// Which kernel object runs: the fastest that the processor supports, or the one that the user has chosen.
#pragma once

#include "coefficients.hpp"
#include "export.hpp"
#include "kernel_table.hpp"
#include "row_kernels.hpp"

#include <span>
#include <string>
#include <string_view>

namespace adaptk::detail {

struct Isa {
    const char* name;  // "portable", "x86-64-v2", "x86-64-v3", "x86-64-v4", "neon"
    bool supported;    // by this processor
    const KernelTable* kernels;
    const CoefficientTable* coefficients;
    const RowWiseTable* row_wise;
    std::size_t number = 0;  // among built_isas()
};

// No build has more.
inline constexpr std::size_t max_isas = 4;

// The kernel objects of this build, slowest first.
ADAPTK_INTERNAL_API std::span<const Isa> built_isas();

ADAPTK_INTERNAL_API const Isa& current_isa();

// Returns an empty string, or why this name cannot be chosen (then nothing changes).
ADAPTK_INTERNAL_API std::string choose_isa(std::string_view name);

// Applies ADAPTK_ISA. Returns an empty string, or what is wrong with its value.
std::string choose_isa_from_environment();

}  // namespace adaptk::detail
