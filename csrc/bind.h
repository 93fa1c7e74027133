// What the bindings share: addresses that come as integers, and the two structures made of them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "table.h"

namespace sfplus {

using Address = std::intptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Table and Run, known to this module alone: a second module of the same source has its own.
inline void bind_tables(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Table>(m, "Table", py::module_local())
      .def(py::init([](Address rows, Address gradients, Address chunks, std::int64_t n_chunks,
                       std::int64_t chunk_size, std::int64_t n_elements, Address drift) {
             return Table{pointer<const std::int64_t>(rows), pointer<const std::int64_t>(gradients),
                          pointer<const std::int64_t>(chunks), n_chunks, chunk_size, n_elements,
                          pointer<double>(drift)};
           }),
           py::arg("rows"), py::arg("gradients"), py::arg("chunks"), py::arg("n_chunks"),
           py::arg("chunk_size"), py::arg("n_elements"), py::arg("drift") = 0);
  py::class_<Run>(m, "Run", py::module_local())
      .def(py::init([](Address globals, Address groups, Address tensors, Address hyper, Address settings,
                       Address group_coefs, Address tensor_coefs, std::int64_t n_groups) {
             return Run{pointer<double>(globals),        pointer<double>(groups),
                        pointer<double>(tensors),        pointer<const double>(hyper),
                        pointer<const double>(settings), pointer<double>(group_coefs),
                        pointer<double>(tensor_coefs),   n_groups};
           }),
           py::arg("globals"), py::arg("groups"), py::arg("tensors"), py::arg("hyper"),
           py::arg("settings"), py::arg("group_coefs"), py::arg("tensor_coefs"), py::arg("n_groups"));
}

}  // namespace sfplus
