// The CUDA passes of csrc/cuda as a Python module whose driver and device are the host.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind.h"
#include "cuda/bindings.h"
#include "fibers.h"

namespace py = pybind11;
using host_cuda::Settings;

PYBIND11_MODULE(host_cuda, m) {
  sfplus::bind_tables(m);
  sfplus::cuda::bind(m);
  py::class_<Settings>(m, "Settings", py::module_local())
      .def_readwrite("reverse", &Settings::reverse)
      .def_readwrite("fail_next", &Settings::fail_next)
      .def_readwrite("device", &Settings::device)
      .def_readwrite("driver_version", &Settings::driver_version)
      .def_readwrite("capability", &Settings::capability)
      .def_readwrite("accesses", &Settings::accesses)
      .def_readwrite("calls", &Settings::calls)
      .def_readwrite("launches", &Settings::launches);
  m.attr("settings") = py::cast(&host_cuda::settings(), py::return_value_policy::reference);
}
