#include "dict_versions.h"

#include <pybind11/pybind11.h>

#include <vector>

namespace py = pybind11;

namespace sfplus {

DictVersions::DictVersions() {
#if PY_VERSION_HEX < 0x030E0000 && !defined(PYPY_VERSION)
  const py::dict dict, others;
  const py::str one("one"), two("two");
  others["one"] = two;
  std::vector<std::uint64_t> numbers;
  bool changes = true;
  const auto note = [&](bool done) {
    for (const std::uint64_t before : numbers) changes = changes && before != number(dict.ptr());
    changes = changes && done && number(dict.ptr()) != number(others.ptr());
    numbers.push_back(number(dict.ptr()));
  };
  PyObject* d = dict.ptr();
  note(true);
  note(PyDict_SetItem(d, one.ptr(), one.ptr()) == 0);
  note(PyDict_SetItem(d, one.ptr(), two.ptr()) == 0);  // another value
  note(PyDict_SetItem(d, two.ptr(), two.ptr()) == 0);
  note(PyDict_DelItem(d, two.ptr()) == 0);
  note(PyDict_SetDefault(d, two.ptr(), two.ptr()) != nullptr);
  note(PyDict_Update(d, py::dict(py::arg("one") = one).ptr()) == 0);
  PyDict_Clear(d);
  note(true);
  note(PyDict_Update(d, others.ptr()) == 0);
  const bool stays = PyDict_GetItemWithError(d, one.ptr()) == two.ptr() && number(d) == numbers.back();
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  known_ = changes && stays;
#endif
}

}  // namespace sfplus
