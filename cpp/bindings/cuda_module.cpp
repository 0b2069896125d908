// The extension module adaptk._cuda: hands the CUDA part to adaptk._core, which imports it when it meets a buffer on a
// CUDA device.
#include "cuda_backend.hpp"

#include <pybind11/pybind11.h>

PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
    m.doc() = "CUDA kernels of adaptk.";
    const adaptk::detail::CudaBackend& backend = *adaptk::detail::adaptk_cuda_backend();
    m.attr("backend") = pybind11::capsule(&backend, "adaptk.cuda_backend");
    // For bench/gpu.
    m.def("set_waves", backend.set_waves, pybind11::arg("waves"));
    m.attr("architectures") = backend.architectures;
    m.attr("toolkit") = std::to_string(backend.runtime / 1000) + "." + std::to_string(backend.runtime % 1000 / 10);
}
