// The Python module sfplus_kernels._C: definitions only. Addresses come as integers, so that nothing here
// depends on torch; whoever calls keeps the memory alive. No pass holds the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "bind.h"
#include "containers.h"
#include "cpu/dispatch.h"
#include "cpu/memory_loop.h"
#include "cpu/passes.h"
#include "math/dtypes.h"
#include "tensor_reader.h"
#ifdef SFPLUS_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/cubins.h"
#endif

namespace py = pybind11;

using sfplus::Address;
using sfplus::pointer;

namespace {

py::dict layout() {
  py::dict enums;
#define SFPLUS_EXPORT_COLUMN(column) columns[#column] = static_cast<int>(Columns::column);
#define SFPLUS_EXPORT_ENUM(name, list) \
  {                                    \
    using Columns = sfplus::name;      \
    py::dict columns;                  \
    list(SFPLUS_EXPORT_COLUMN);        \
    enums[#name] = columns;            \
  }
  SFPLUS_ENUMS(SFPLUS_EXPORT_ENUM)
#undef SFPLUS_EXPORT_ENUM
#undef SFPLUS_EXPORT_COLUMN
  return enums;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels; see sfplus_kernels/_C.pyi.";
  using release = py::call_guard<py::gil_scoped_release>;

  sfplus::bind_tables(m);
  sfplus::bind_tensor_reader(m);
  sfplus::bind_containers(m);
  // why there are no CUDA kernels in this build, empty if there are
#ifdef SFPLUS_WITH_CUDA
  m.attr("CUDA_MISSING") = "";
  m.attr("CUDA_COMPILER") = py::str(sfplus::cuda::kCompiler);
  py::dict images;
  for (std::size_t i = 0; i < sfplus::cuda::kImageCount; ++i) {
    const sfplus::cuda::Image& image = sfplus::cuda::kImages[i];
    images[image.architecture] = py::make_tuple(
        py::memoryview::from_memory(image.begin, image.end - image.begin), image.first, image.size
    );
  }
  m.attr("CUDA_IMAGES") = images;
  sfplus::cuda::bind(m);
#else
  m.attr("CUDA_MISSING") = SFPLUS_CUDA_MISSING;
#endif

  m.def(
      "reduce",
      [](const sfplus::Table& table, int format, int param_dtype, int grad_dtype, bool with_e, Address partials,
         std::int64_t n_partials, int n_threads) {
        sfplus::reduce(table, format, param_dtype, grad_dtype, with_e, pointer<double>(partials), n_partials,
                       n_threads);
      },
      py::arg("table"), py::arg("format"), py::arg("param_dtype"), py::arg("grad_dtype"), py::arg("with_e"),
      py::arg("partials"), py::arg("n_partials"), py::arg("n_threads"), release());
  m.def(
      "finalize",
      [](Address partials, std::int64_t n_partials, Address rows, std::int64_t n_rows,
         const sfplus::Run& run, double max_coefficient) {
        sfplus::finalize(pointer<const double>(partials), n_partials, pointer<const std::int64_t>(rows),
                         n_rows, run, max_coefficient);
      },
      py::arg("partials"), py::arg("n_partials"), py::arg("rows"), py::arg("n_rows"), py::arg("run"),
      py::arg("max_coefficient"), release());
  m.def("update", &sfplus::update, py::arg("table"), py::arg("format"), py::arg("param_dtype"), py::arg("grad_dtype"),
        py::arg("run"), py::arg("n_threads"), release());
  m.def("interpolate", &sfplus::interpolate, py::arg("table"), py::arg("format"), py::arg("param_dtype"), py::arg("run"),
        py::arg("move"), py::arg("n_threads"), release());

  py::class_<sfplus::MemoryLoop>(m, "MemoryLoop")
      .def(py::init([](const std::vector<std::pair<std::vector<std::pair<Address, std::int64_t>>, std::int64_t>>& parts,
                       int n_changed) {
             std::vector<sfplus::StreamPart> found;
             for (const auto& [arrays, numel] : parts) {
               found.push_back({{}, numel});
               for (const auto& [at, width] : arrays) found.back().arrays.push_back({pointer<void>(at), width});
             }
             return std::make_unique<sfplus::MemoryLoop>(std::move(found), n_changed);
           }),
           py::arg("parts"), py::arg("n_changed"))
      .def("run", &sfplus::MemoryLoop::run, py::arg("backwards"), py::arg("flips"), py::arg("n_threads"), release());
  m.def("layout", &layout);
  m.def("isa", &sfplus::isa);
  m.def("available_isas", &sfplus::available_isas);
  m.def("set_isa", &sfplus::set_isa, py::arg("name"));
}
