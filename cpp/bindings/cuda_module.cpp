// The extension module adaptk._cuda: hands the CUDA part to adaptk._core, which imports it when it meets a buffer on a
// CUDA device.
#include "plain_module.hpp"

#include "cuda_backend.hpp"

#include <climits>

namespace adaptk::bindings {
namespace {

const detail::CudaBackend& backend() { return *detail::adaptk_cuda_backend(); }

// For bench/gpu.
PyObject* set_waves(PyObject*, PyObject* args, PyObject* keywords) {
    static char waves_name[] = "waves";
    static char* names[] = {waves_name, nullptr};
    PyObject* number = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:set_waves", names, &number)) return nullptr;
    const unsigned long waves = PyLong_AsUnsignedLong(number);
    if (PyErr_Occurred()) return nullptr;
    if (waves > UINT_MAX) return PyErr_Format(PyExc_OverflowError, "waves: %lu is too large", waves);
    return PyLong_FromUnsignedLong(backend().set_waves(unsigned(waves)));
}

int fill(PyObject* m) {
    const int runtime = backend().runtime;
    const bool failed =
        add(m, "backend",
            PyCapsule_New(const_cast<detail::CudaBackend*>(&backend()), "adaptk.cuda_backend", nullptr)) != 0 ||
        add(m, "architectures", PyUnicode_FromString(backend().architectures)) != 0 ||
        add(m, "toolkit", PyUnicode_FromFormat("%d.%d", runtime / 1000, runtime % 1000 / 10)) != 0;
    return failed ? -1 : 0;
}

PyMethodDef functions[] = {
    {"set_waves", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(set_waves)), METH_VARARGS | METH_KEYWORDS,
     "set_waves(waves: int) -> int"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace adaptk::bindings

PyMODINIT_FUNC PyInit__cuda() {
    using namespace adaptk::bindings;
    return plain_module<fill>("_cuda", "CUDA kernels of adaptk.", functions);
}
