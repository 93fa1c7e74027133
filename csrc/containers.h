// Are an optimizer's containers as they were when a plan was made of them? One pass over what Python holds.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "quick_look.h"
#include "tensor_reader.h"

namespace sfplus {

// What was seen of groups and state: addresses, sizes of storages, dtypes, devices, shapes and strides, as one row of
// numbers.
//
// The objects themselves are not kept, so that whoever drops a tensor frees its memory. That another object may come
// to lie where one was is no danger: the containers hold it alive, and all that a kernel goes by is compared.
class Witness {
 public:
  // `reader`: a TensorReader. `names`: the keys of state[p] that kernels touch.
  Witness(pybind11::object reader, pybind11::tuple names);

  // Remember what is there. False if it cannot be: then nothing will ever be found as it was.
  // `gradients`: None where none are read; True to read p.grad; or a list, one or None for each parameter.
  bool note(const pybind11::object& groups, const pybind11::object& state, const pybind11::object& gradients);

  // None if anything is not as it was noted; else (gradients, moved): those that there are, and whether one of them
  // is elsewhere than at the last look.
  pybind11::object look(const pybind11::object& groups, const pybind11::object& state,
                        const pybind11::object& gradients);

  bool knows_dicts() const { return quick_.knows_dicts(); }

 private:
  struct Look;  // one pass

  bool walk(Look& look, PyObject* groups, PyObject* state, PyObject* gradients);
  bool see_group(Look& look, PyObject* group, PyObject* state, PyObject* gradients);
  bool see_next_state(Look& look, PyObject* state, PyObject* wanted);
  bool see_state(Look& look, PyObject* own);
  bool see_tensor(Look& look, PyObject* tensor);
  bool see_gradient(Look& look, PyObject* tensor);
  PyObject* plain_part(Look& look, PyObject* tensor);

  pybind11::object reader_object_;  // keeps `reader_` alive
  const TensorReader& reader_;
  pybind11::tuple name_strings_;  // keeps the next alive
  std::vector<PyObject*> names_;
  std::vector<std::int64_t> noted_, places_;  // what must stay; where the gradients were
  bool valid_ = false;
  QuickLook quick_;
};

void bind_containers(pybind11::module_& m);

}  // namespace sfplus
