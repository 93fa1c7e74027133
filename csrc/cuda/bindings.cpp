// The CUDA passes in the Python module: definitions only, like csrc/bindings.cpp.
#include "bindings.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../bind.h"
#include "kernels.h"
#include "passes.h"

namespace py = pybind11;

namespace sfplus {
namespace cuda {

void bind(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Finish>(m, "Finish", py::module_local())
      .def(py::init([](Address partials, std::int64_t n_partials, Address rows, std::int64_t n_rows,
                       const Run& run, Address loss, int loss_dtype, double max_coefficient,
                       Address tickets) {
             return Finish{pointer<const double>(partials),
                           n_partials,
                           pointer<const std::int64_t>(rows),
                           n_rows,
                           run,
                           pointer<const void>(loss),
                           loss_dtype,
                           max_coefficient,
                           pointer<unsigned>(tickets)};
           }),
           py::arg("partials"), py::arg("n_partials"), py::arg("rows"), py::arg("n_rows"), py::arg("run"),
           py::arg("loss"), py::arg("loss_dtype"), py::arg("max_coefficient"), py::arg("tickets"));
  m.def(
      "cuda_reduce",
      [](const Table& table, int format, int param_dtype, int grad_dtype, bool with_e, Address partials,
         std::int64_t n_partials, double weight, const Finish& finish, int device, Address stream) {
        reduce(table, format, param_dtype, grad_dtype, with_e, pointer<double>(partials), n_partials, weight, finish,
               {device, stream});
      },
      py::arg("table"), py::arg("format"), py::arg("param_dtype"), py::arg("grad_dtype"), py::arg("with_e"),
      py::arg("partials"), py::arg("n_partials"), py::arg("weight"), py::arg("finish"), py::arg("device"),
      py::arg("stream"), release());
  m.def(
      "cuda_finalize",
      [](const Finish& finish, int device, Address stream) { finalize(finish, {device, stream}); },
      py::arg("finish"), py::arg("device"), py::arg("stream"), release());
  m.def(
      "cuda_update",
      [](const Table& table, int format, int param_dtype, int grad_dtype, bool has_exp_avg, bool has_exp_avg_sq,
         bool has_displacement, const Finish& finish, int device, Address stream) {
        update(table, format, param_dtype, grad_dtype, has_exp_avg, has_exp_avg_sq, has_displacement, finish,
               {device, stream});
      },
      py::arg("table"), py::arg("format"), py::arg("param_dtype"), py::arg("grad_dtype"), py::arg("has_exp_avg"),
      py::arg("has_exp_avg_sq"), py::arg("has_displacement"), py::arg("finish"), py::arg("device"), py::arg("stream"),
      release());
  m.def(
      "cuda_interpolate",
      [](const Table& table, int format, int param_dtype, const Run& run, int move, int device, Address stream) {
        interpolate(table, format, param_dtype, run, move, {device, stream});
      },
      py::arg("table"), py::arg("format"), py::arg("param_dtype"), py::arg("run"), py::arg("move"), py::arg("device"),
      py::arg("stream"), release());
  m.def("cuda_driver_version", &driver_version);
  m.def("cuda_capability", &capability, py::arg("device"));
  m.def(
      "cuda_load", [](int device, const std::string& image) { load(device, image.c_str()); },
      py::arg("device"), py::arg("image"), release());
  std::vector<std::string> names;
  for (int kernel = 0; kernel < kKernels; ++kernel) names.push_back(kernel_name(kernel));
  m.attr("CUDA_KERNELS") = names;
}

}  // namespace cuda
}  // namespace sfplus
