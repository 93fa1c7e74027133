// Are an optimizer's containers as they were when a plan was made of them? One pass over what Python holds, without
// libtorch: torch's DLPack exchange table (torch 2.10 on) tells where a tensor is, an older torch is asked by its
// methods.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace sfplus {

// What was seen of groups and state: addresses, dtypes, devices, shapes and strides, as one row of numbers.
//
// The objects themselves are not kept, so that whoever drops a tensor frees its memory. That another object may come
// to lie where one was is no danger: the containers hold it alive, and all that a kernel goes by is compared.
class Witness {
 public:
  // `exchange`: torch.Tensor.__dlpack_c_exchange_api__, or None. `plain`: the types of tensors that are what they
  // look like. `names`: the keys of state[p] that kernels touch.
  Witness(pybind11::object exchange, pybind11::tuple plain, pybind11::tuple names);

  // Remember what is there. False if it cannot be: then nothing will ever be found as it was.
  // `gradients`: None where none are read; True to read p.grad; or a list, one or None for each parameter.
  bool note(const pybind11::object& groups, const pybind11::object& state, const pybind11::object& gradients);

  // None if anything is not as it was noted; else (parameters, gradients, moved): those that have a gradient, and
  // whether one of these is elsewhere than at the last look.
  pybind11::object look(const pybind11::object& groups, const pybind11::object& state,
                        const pybind11::object& gradients);

 private:
  struct Look;  // one pass

  bool walk(Look& look, PyObject* groups, PyObject* state, PyObject* gradients);
  bool see_group(Look& look, PyObject* group, PyObject* gradients);
  bool see_states(Look& look, PyObject* state);
  bool see_tensor(Look& look, PyObject* tensor, bool may_move);
  bool see_by_methods(Look& look, PyObject* tensor, bool may_move);
  bool is_plain(PyObject* tensor) const;

  pybind11::object exchange_;  // keeps `describe_` alive
  int (*describe_)(void*, void*) = nullptr;
  pybind11::tuple plain_types_, name_strings_;  // keep the two below alive
  std::vector<PyObject*> plain_, names_;
  std::vector<std::intptr_t> noted_, places_;  // what must stay; where the gradients were
  bool valid_ = false;
};

void bind_containers(pybind11::module_& m);

}  // namespace sfplus
