// Replaces NVRTC, which does not compile for the host: rules made at run time have no kernels here.
#include "run_time.hpp"

namespace adaptk::cuda {

void check_compiler() { throw CompilationError("nothing is compiled at run time here"); }

const void* kernel_of_program(const detail::RuleInfo&, int, KernelKind, std::size_t, std::size_t) {
    throw CompilationError("nothing is compiled at run time here");
}

}  // namespace adaptk::cuda
