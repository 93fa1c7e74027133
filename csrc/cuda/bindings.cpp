// The CUDA passes in the Python module: definitions only, like csrc/bindings.cpp.
#include "bindings.h"

#include <pybind11/stl.h>

#include "../bind.h"
#include "passes.h"

namespace py = pybind11;

namespace sfplus {
namespace cuda {

void bind(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "cuda_reduce",
      [](const Table& table, int param_dtype, int grad_dtype, bool with_e, Address partials,
         std::int64_t n_partials, int device, Address stream) {
        reduce(table, param_dtype, grad_dtype, with_e, pointer<double>(partials), n_partials,
               {device, stream});
      },
      py::arg("table"), py::arg("param_dtype"), py::arg("grad_dtype"), py::arg("with_e"),
      py::arg("partials"), py::arg("n_partials"), py::arg("device"), py::arg("stream"), release());
  m.def(
      "cuda_finalize",
      [](Address partials, std::int64_t n_partials, Address rows, std::int64_t n_rows, const Run& run,
         double max_coefficient, int device, Address stream) {
        finalize(pointer<const double>(partials), n_partials, pointer<const std::int64_t>(rows), n_rows,
                 run, max_coefficient, {device, stream});
      },
      py::arg("partials"), py::arg("n_partials"), py::arg("rows"), py::arg("n_rows"), py::arg("run"),
      py::arg("max_coefficient"), py::arg("device"), py::arg("stream"), release());
  m.def(
      "cuda_update",
      [](const Table& table, int param_dtype, int grad_dtype, bool has_exp_avg, bool has_exp_avg_sq,
         const Run& run, int device, Address stream) {
        update(table, param_dtype, grad_dtype, has_exp_avg, has_exp_avg_sq, run, {device, stream});
      },
      py::arg("table"), py::arg("param_dtype"), py::arg("grad_dtype"), py::arg("has_exp_avg"),
      py::arg("has_exp_avg_sq"), py::arg("run"), py::arg("device"), py::arg("stream"), release());
  m.def(
      "cuda_interpolate",
      [](const Table& table, int param_dtype, const Run& run, int move, int device, Address stream) {
        interpolate(table, param_dtype, run, move, {device, stream});
      },
      py::arg("table"), py::arg("param_dtype"), py::arg("run"), py::arg("move"), py::arg("device"),
      py::arg("stream"), release());
  m.def("cuda_versions", [] { return py::make_tuple(runtime_version(), driver_version()); });
  m.def("cuda_device_problem", &device_problem, py::arg("device"));
}

}  // namespace cuda
}  // namespace sfplus
