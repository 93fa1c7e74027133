// Where a tensor is and what it looks like, without libtorch at build time: asked of torch's own C interface, the one
// that AOTInductor's programs are built against (aoti_torch_get_...), where it is there; else of the tensor's methods.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "facts.h"
#include "tensor_words.h"

namespace sfplus {

// Addresses of what is read together: an object and what it points at. Good for prefetching and nothing else.
struct Near {
  std::uintptr_t object = 0, first = 0, second = 0, third = 0, fourth = 0;

  void prefetch() const;
};

class TensorReader {
 public:
  // `plain`: the types of tensors that are what they look like, the first of them torch.Tensor. `probes`: a few
  // tensors, on which the C interface is tried; without any, or if it does not say what the methods say, methods are
  // called.
  TensorReader(pybind11::tuple plain, const pybind11::tuple& probes);

  bool is_plain(PyObject* tensor) const {
    for (const PyObject* type : plain_) {
      if (reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == type) return true;
    }
    return false;
  }

  // False, and no error, if it is not of a plain type or cannot be read.
  bool read(PyObject* tensor, Facts& facts) const;

  // As `read`, by what torch keeps of it in words: false, too, where these are not known.
  bool read_words(PyObject* tensor, Words& words) const {
    return words_.known() && is_plain(tensor) && words_.read(object_of(tensor), words);
  }

  // Whether the words of a plain tensor are those that were noted; see TensorWords.
  bool are_words(PyObject* tensor, const std::int64_t* row) const { return words_.are(object_of(tensor), row); }

  // Bytes of an element, 0 if that cannot be said.
  std::int64_t itemsize(PyObject* tensor, const Facts& facts) const;

  // Whether the storage of `tensor`, whose facts these are, holds all of its elements.
  bool has_room(PyObject* tensor, const Facts& facts) const;

  // A tensor, its storage, what it has of autograd's and then its count of versions; nothing but zeros where methods are called.
  Near near(PyObject* tensor) const;

  // As the attribute; a null object, and no error, where there is none.
  pybind11::object grad(PyObject* tensor) const;

  // int64 addresses of `tensors`; None if one has not the strides that go with it, or cannot be read.
  pybind11::object addresses(const pybind11::list& tensors, const pybind11::list& strides) const;

  bool direct() const { return direct_; }
  bool knows_words() const { return words_.known(); }

 private:
  // Torch's own object, to which a Python tensor points.
  std::uintptr_t object_of(PyObject* tensor) const {
    return *reinterpret_cast<std::uintptr_t*>(reinterpret_cast<char*>(tensor) + handle_);
  }

  using Ask = std::int32_t (*)(void* tensor, void* answer);
  struct Interface {
    Ask layout, dtype, device_type, device_index, dim, sizes, strides, data, bytes, offset;
    std::size_t (*itemsize)(std::int32_t dtype);
  };

  bool find_interface();
  bool find_handle(const pybind11::tuple& probes);
  bool find_words(const pybind11::tuple& probes);
  bool is_true(const pybind11::tuple& probes) const;
  bool ask(PyObject* tensor, Facts& facts) const;
  bool call_methods(PyObject* tensor, Facts& facts) const;

  pybind11::tuple plain_types_;  // keeps `plain_` alive
  std::vector<PyObject*> plain_;
  PyGetSetDef* grad_ = nullptr;  // how the plain types make the attribute, if all of them do it alike
  Interface torch_{};
  Py_ssize_t handle_ = 0;  // bytes from a Python tensor's beginning to its at::Tensor, which is what torch_ takes
  bool direct_ = false;
  TensorWords words_;
};

void bind_tensor_reader(pybind11::module_& m);

}  // namespace sfplus
