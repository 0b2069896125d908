// What keeps threads apart on free-threaded CPython. With the GIL all of this compiles to nothing, or to taking a
// reference.
#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

#include <vector>

namespace adaptk::bindings {

namespace py = pybind11;

// The lock of an object of ours, which stands for Python's own: it is given up wherever that one is, where Python runs
// or waits and around long work, so nobody who holds it waits for another who wants it. What has to last beyond that is
// marked by a flag that is read and written under it (see Busy).
class ObjectLock {
  public:
    [[nodiscard]] py::scoped_critical_section take() const { return py::scoped_critical_section(object_); }

  private:
#if defined(Py_GIL_DISABLED)
    static py::object make() {
        auto made =
            py::reinterpret_steal<py::object>(PyObject_CallNoArgs(reinterpret_cast<PyObject*>(&PyBaseObject_Type)));
        if (!made) throw py::error_already_set();
        return made;
    }
    py::object object_ = make();
#else
    py::handle object_;
#endif
};

// References to what a list or a tuple holds. Others may change a list at any time.
inline std::vector<py::object> items_of(PyObject* sequence) {
    const py::scoped_critical_section locked(sequence);
    const auto count = PySequence_Fast_GET_SIZE(sequence);
    std::vector<py::object> items;
    items.reserve(std::size_t(count));
    for (Py_ssize_t i = 0; i < count; ++i)
        items.push_back(py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(sequence, i)));
    return items;
}

// A reference to an item of a list; IndexError where it has no such item any more.
inline py::object item_of(const py::list& list, std::size_t index) {
#if PY_VERSION_HEX >= 0x030d0000
    auto item = py::reinterpret_steal<py::object>(PyList_GetItemRef(list.ptr(), Py_ssize_t(index)));
#else
    auto item = py::reinterpret_borrow<py::object>(PyList_GetItem(list.ptr(), Py_ssize_t(index)));
#endif
    if (!item) throw py::error_already_set();
    return item;
}

// A reference to what a dict has under a key, or null.
inline py::object value_of(PyObject* dict, PyObject* key) {
#if PY_VERSION_HEX >= 0x030d0000
    PyObject* value = nullptr;
    if (PyDict_GetItemRef(dict, key, &value) < 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
#else
    PyObject* const value = PyDict_GetItemWithError(dict, key);
    if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(value);
#endif
}

// An interned string, for ever. Strings are made at import: inside the guard of a static that is first used later,
// Python could wait for a thread that waits for the guard.
inline PyObject* interned(const char* text) {
    PyObject* const made = PyUnicode_InternFromString(text);
    if (made == nullptr) throw py::error_already_set();
    return made;
}

}  // namespace adaptk::bindings
