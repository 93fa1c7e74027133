// Whether a dict holds what it held, at one glance and without a look at what is in it: up to 3.13, Python gives a dict
// another number whenever it is modified, and no number twice (PEP 509).
#pragma once

#include <Python.h>

#include <cstdint>

namespace sfplus {

class DictVersions {
 public:
  // Tries it on a dict.
  DictVersions();

  bool known() const { return known_; }

  // 0 where they are not known.
  std::uint64_t of(PyObject* dict) const { return known_ ? number(dict) : 0; }

  // Whether a dict has this number, of which it was noted that it is that of a dict.
  bool same(PyObject* dict, std::uint64_t noted) const { return known_ && number(dict) == noted; }

 private:
  // Behind what all objects have comes the number of entries, then it.
  static std::uint64_t number(PyObject* dict) {
    return *reinterpret_cast<const std::uint64_t*>(reinterpret_cast<const char*>(dict) + sizeof(PyObject) + sizeof(Py_ssize_t));
  }

  bool known_ = false;
};

}  // namespace sfplus
