// The words of memory by which torch gets from a tensor to its gradient, and from there to the Python object of it. To
// follow them takes a fraction of the time of the attribute. Where each stands is found by looking at tensors of which
// it is known, and if it is not found, the attribute is read.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

namespace sfplus {

class GradientWords {
 public:
  // Where torch's own objects for a tensor and its gradient are, and Python's for the gradient; 0 where there is none.
  struct Probe {
    std::uintptr_t object, gradient, python;
  };

  // Some of the probes need a gradient; some none, though they could have one; some be such as never had anything to do
  // with gradients. False if there is not one place, and only one, that is right for all of them.
  bool find(const std::vector<Probe>& probes);

  bool known() const { return python_ > 0; }

  // Torch's object for the gradient of the tensor at this address; 0 if there is none. The tensor, which is alive,
  // holds it.
  std::uintptr_t gradient_of(std::uintptr_t object) const {
    const std::uintptr_t meta = word(object, meta_);
    const std::uintptr_t gradient = meta == 0 ? none_ : word(meta, gradient_);
    return gradient == none_ ? 0 : gradient;
  }

  // What gradient_of will look at behind the tensor: for fetching ahead.
  std::uintptr_t ahead_of(std::uintptr_t object) const { return word(object, meta_) + gradient_ * sizeof(std::uintptr_t); }

  // The Python object of a tensor of which others than it hold torch's; null if there is none so far. It is alive: torch
  // keeps it as long as somebody else holds its own object, and takes the address away before it goes.
  PyObject* python_of(std::uintptr_t object) const { return reinterpret_cast<PyObject*>(word(object, python_)); }

 private:
  static std::uintptr_t word(std::uintptr_t object, int place) {
    return reinterpret_cast<const std::uintptr_t*>(object)[place];
  }

  // all counted in words
  int meta_ = 0;      // in a tensor: the address of what autograd keeps of it, or 0
  int gradient_ = 0;  // in that: the address of the gradient
  int python_ = 0;    // in a tensor: the address of its Python object
  std::uintptr_t none_ = 0;  // what stands for no gradient
};

}  // namespace sfplus
