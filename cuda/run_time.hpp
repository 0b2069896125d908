// Kernels of rules that are made at run time: compiled by NVRTC for a device when they are first needed there, and
// kept.
#pragma once

#include "registry.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>

namespace adaptk::cuda {

// Of a rule with reductions, `prepare` computes scalars, `measure` is a pass before the update, and `lines` what the
// states of rows and columns become behind it (measure_kernel.hpp).
enum class KernelKind : std::size_t { step, stored_step, prepare, measure, stored_measure, lines };

// What went wrong besides calls of the CUDA runtime.
struct CompilationError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The kernel of a rule that is a program, as the runtime knows it, for the current device: [type] 0 float, 1 double.
// Throws CompilationError or RuntimeError.
const void* kernel_of_program(const detail::RuleInfo& rule, int device, KernelKind kind, std::size_t type,
                              std::size_t pass = 0);

// Throws CompilationError if nothing can be compiled here.
void check_compiler();

// For tests: the text that NVRTC is given.
std::string source_of_kernel(const detail::RuleInfo& rule, KernelKind kind, std::size_t type, std::size_t pass = 0);

}  // namespace adaptk::cuda
