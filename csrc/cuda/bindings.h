#pragma once

#include <pybind11/pybind11.h>

namespace sfplus {
namespace cuda {

// Adds the passes of passes.h to a module that has Table and Run.
void bind(pybind11::module_& m);

}  // namespace cuda
}  // namespace sfplus
