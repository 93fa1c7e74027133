// Where a tensor is and what it looks like, without libtorch at build time: asked of torch's own C interface, the one
// that AOTInductor's programs are built against (aoti_torch_get_...), where it is there; else of the tensor's methods.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "facts.h"
#include "gradient_words.h"
#include "tensor_words.h"

namespace sfplus {

class TensorReader {
 public:
  // `plain`: the types of tensors that are what they look like, the first of them torch.Tensor. `probes`: a few
  // tensors, on which the C interface is tried; without any, or if it does not say what the methods say, methods are
  // called. `versioned`: tensors that were written differently often, each with a view. `graded`: tensors with and
  // without a gradient; see GradientWords.
  TensorReader(pybind11::tuple plain, const pybind11::tuple& probes, const pybind11::tuple& versioned,
               const pybind11::tuple& graded);

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

  // Torch's own object, to which a Python tensor points.
  std::uintptr_t object_of(PyObject* tensor) const {
    return *reinterpret_cast<std::uintptr_t*>(reinterpret_cast<char*>(tensor) + handle_);
  }

  // Of such objects, where their words are known; see TensorWords.
  std::uintptr_t storage_of(std::uintptr_t object) const { return words_.storage_of(object); }
  bool is_at(std::uintptr_t object, std::uintptr_t storage, const std::int64_t* first) const {
    return words_.is_at(object, storage, first);
  }
  bool is_like(std::uintptr_t object, const Words& words) const { return words_.is_like(object, words); }

  // Whether the words of a plain tensor are those that were noted; see TensorWords.
  bool are_words(PyObject* tensor, const std::int64_t* row) const { return words_.are(object_of(tensor), row); }

  // Bytes of an element, 0 if that cannot be said.
  std::int64_t itemsize(PyObject* tensor, const Facts& facts) const;

  // Whether the storage of `tensor`, whose facts these are, holds all of its elements.
  bool has_room(PyObject* tensor, const Facts& facts) const;

  // Where a look for the gradient of torch's object at this address will lead, for fetching ahead; 0 if that is not known.
  std::uintptr_t way_to_gradient(std::uintptr_t object) const { return gradients_.known() ? gradients_.ahead_of(object) : 0; }

  // As the attribute; a null object, and no error, where there is none.
  pybind11::object grad(PyObject* tensor) const;

  // int64 addresses of `tensors`; None if one has not the strides that go with it, or cannot be read, or, where words are
  // known, bears another mark than the first.
  pybind11::object addresses(const pybind11::list& tensors, const pybind11::list& strides) const;

  // Count a write of each of `tensors`; false, and nothing is counted, where one of them has to be left to torch.
  bool count_versions(const pybind11::list& tensors) const;

  bool direct() const { return direct_; }
  bool knows_words() const { return words_.known(); }
  bool knows_versions() const { return words_.knows_versions(); }
  bool knows_gradients() const { return gradients_.known(); }

 private:
  using Ask = std::int32_t (*)(void* tensor, void* answer);
  struct Interface {
    Ask layout, dtype, device_type, device_index, dim, sizes, strides, data, bytes, offset;
    std::size_t (*itemsize)(std::int32_t dtype);
  };

  bool find_interface();
  bool find_handle(const pybind11::tuple& probes);
  bool find_words(const pybind11::tuple& probes);
  bool find_versions(const pybind11::tuple& versioned);
  bool find_gradients(const pybind11::tuple& graded);
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
  GradientWords gradients_;
};

void bind_tensor_reader(pybind11::module_& m);

}  // namespace sfplus
