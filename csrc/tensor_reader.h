// Where a tensor is and what it looks like, without libtorch at build time: asked of torch's own C interface, the one
// that AOTInductor's programs are built against (aoti_torch_get_...), where it is there; else of the tensor's methods.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace sfplus {

// Of a tensor all that an access to its memory goes by. `shape` and `strides` are good until the next tensor is read.
struct Facts {
  std::int64_t dtype, device, ndim;  // numbers that are equal for equal ones
  const std::int64_t *shape, *strides;
  std::intptr_t data;           // of its first element
  std::int64_t bytes, offset;   // of the whole storage; elements from its beginning to the first one
  std::vector<std::int64_t> own;  // where torch has no memory that holds shape and strides

  std::int64_t numel() const;
};

// Addresses of what is read together: an object and what it points at. Good for prefetching and nothing else.
struct Near {
  std::uintptr_t object = 0, first = 0, second = 0;

  void prefetch() const;
};

class TensorReader {
 public:
  // `plain`: the types of tensors that are what they look like, the first of them torch.Tensor. `probes`: a few
  // tensors, on which the C interface is tried; without any, or if it does not say what the methods say, methods are
  // called.
  TensorReader(pybind11::tuple plain, const pybind11::tuple& probes);

  bool is_plain(PyObject* tensor) const;

  // False, and no error, if it is not of a plain type or cannot be read.
  bool read(PyObject* tensor, Facts& facts) const;

  // Whether the storage of `tensor`, whose facts these are, holds all of its elements.
  bool has_room(PyObject* tensor, const Facts& facts) const;

  // A tensor and its storage, or what belongs to autograd; nothing but zeros where methods are called.
  Near near(PyObject* tensor, bool of_autograd) const;

  // As the attribute; a null object, and no error, where there is none.
  pybind11::object grad(PyObject* tensor) const;

  // int64 addresses of `tensors`; None if one has not the strides that go with it, or cannot be read.
  pybind11::object addresses(const pybind11::list& tensors, const pybind11::list& strides) const;

  bool direct() const { return direct_; }

 private:
  using Ask = std::int32_t (*)(void* tensor, void* answer);
  struct Interface {
    Ask layout, dtype, device_type, device_index, dim, sizes, strides, data, bytes, offset;
    std::size_t (*itemsize)(std::int32_t dtype);
  };

  bool find_interface();
  bool find_handle(const pybind11::tuple& probes);
  bool is_true(const pybind11::tuple& probes) const;
  bool ask(PyObject* tensor, Facts& facts) const;
  bool call_methods(PyObject* tensor, Facts& facts) const;

  pybind11::tuple plain_types_;  // keeps `plain_` alive
  std::vector<PyObject*> plain_;
  PyGetSetDef* grad_ = nullptr;  // how the plain types make the attribute, if all of them do it alike
  Interface torch_{};
  Py_ssize_t handle_ = 0;  // bytes from a Python tensor's beginning to its at::Tensor, which is what torch_ takes
  bool direct_ = false;
};

void bind_tensor_reader(pybind11::module_& m);

}  // namespace sfplus
