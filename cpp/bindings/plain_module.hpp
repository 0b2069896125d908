// Extension modules by Python's C API alone: pybind11 takes six seconds to compile, whatever a module uses of it.
#pragma once

#include <Python.h>

namespace adaptk::bindings {

// The module of this name and text. `fill` adds to it what it has, and returns 0, or -1 with a Python error. Once for
// each module, whose functions may be null.
template <int (*fill)(PyObject* module)>
PyObject* plain_module(const char* name, const char* text, PyMethodDef* functions = nullptr) {
    static PyModuleDef_Slot slots[] = {
        {Py_mod_exec, reinterpret_cast<void*>(fill)},
#if defined(Py_mod_multiple_interpreters)
        {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if defined(Py_mod_gil)
        {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
        {0, nullptr},
    };
    static PyModuleDef module{PyModuleDef_HEAD_INIT, name, text, 0, functions, slots, nullptr, nullptr, nullptr};
    return PyModuleDef_Init(&module);
}

// Adds a new reference, which it takes; -1 with a Python error, also if `value` is null.
inline int add(PyObject* to, const char* name, PyObject* value) {
    const int failed = value == nullptr ? -1 : PyObject_SetAttrString(to, name, value);
    Py_XDECREF(value);
    return failed;
}

}  // namespace adaptk::bindings
