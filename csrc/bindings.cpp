// The Python module sfplus_kernels._C: definitions only. Addresses come as integers, so that nothing here
// depends on torch; whoever calls keeps the memory alive. No pass holds the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "cpu/passes.h"
#include "math/dtypes.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::intptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = std::intptr_t;

sfplus::Table make_table(Address rows, Address gradients, Address chunks, std::int64_t n_chunks,
                         std::int64_t chunk_size, std::int64_t n_elements) {
  return {pointer<const std::int64_t>(rows), pointer<const std::int64_t>(gradients),
          pointer<const std::int64_t>(chunks), n_chunks, chunk_size, n_elements};
}

sfplus::Run make_run(Address globals, Address groups, Address tensors, Address hyper, Address settings,
                     Address group_coefs, Address tensor_coefs, std::int64_t n_groups) {
  return {pointer<double>(globals),      pointer<double>(groups),
          pointer<double>(tensors),      pointer<const double>(hyper),
          pointer<const double>(settings), pointer<double>(group_coefs),
          pointer<double>(tensor_coefs), n_groups};
}

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

  py::class_<sfplus::Table>(m, "Table")
      .def(py::init(&make_table), py::arg("rows"), py::arg("gradients"), py::arg("chunks"),
           py::arg("n_chunks"), py::arg("chunk_size"), py::arg("n_elements"));
  py::class_<sfplus::Run>(m, "Run")
      .def(py::init(&make_run), py::arg("globals"), py::arg("groups"), py::arg("tensors"),
           py::arg("hyper"), py::arg("settings"), py::arg("group_coefs"), py::arg("tensor_coefs"),
           py::arg("n_groups"));

  m.def(
      "reduce",
      [](const sfplus::Table& table, int param_dtype, int grad_dtype, bool with_e, Address partials,
         std::int64_t n_partials, int n_threads) {
        sfplus::reduce(table, param_dtype, grad_dtype, with_e, pointer<double>(partials), n_partials,
                       n_threads);
      },
      py::arg("table"), py::arg("param_dtype"), py::arg("grad_dtype"), py::arg("with_e"),
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
  m.def("update", &sfplus::update, py::arg("table"), py::arg("param_dtype"), py::arg("grad_dtype"),
        py::arg("run"), py::arg("n_threads"), release());
  m.def("interpolate", &sfplus::interpolate, py::arg("table"), py::arg("param_dtype"), py::arg("run"),
        py::arg("move"), py::arg("n_threads"), release());

  m.def(
      "negate",
      [](Address x, std::int64_t numel, int n_threads) {
        sfplus::negate(pointer<float>(x), numel, n_threads);
      },
      py::arg("x"), py::arg("numel"), py::arg("n_threads"), release());
  m.def("layout", &layout);
  m.def("isa", &sfplus::isa);
  m.def("available_isas", &sfplus::available_isas);
  m.def("set_isa", &sfplus::set_isa, py::arg("name"));
}
