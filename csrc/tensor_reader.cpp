#include "tensor_reader.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

#include <atomic>
#include <utility>

#include "fetch.h"

namespace py = pybind11;

namespace sfplus {
namespace {

// Attributes and methods by name: Python compares such strings by their address.
struct Names {
  PyObject *grad = PyUnicode_InternFromString("grad"), *data_ptr = PyUnicode_InternFromString("data_ptr"),
           *dtype = PyUnicode_InternFromString("dtype"), *device = PyUnicode_InternFromString("device"),
           *shape = PyUnicode_InternFromString("shape"),
           *stride = PyUnicode_InternFromString("stride"), *offset = PyUnicode_InternFromString("storage_offset"),
           *storage = PyUnicode_InternFromString("untyped_storage"), *nbytes = PyUnicode_InternFromString("nbytes"),
           *itemsize = PyUnicode_InternFromString("element_size");
};

const Names& names() {
  static const Names* all = new Names;  // never freed: Python may be gone before C++ is
  return *all;
}

py::object attribute(PyObject* object, PyObject* name) {
  return py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
}

py::object call(PyObject* object, PyObject* method) {
  return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, method));
}

bool same_strides(const Facts& facts, PyObject* strides) {
  if (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != facts.ndim) return false;
  for (Py_ssize_t i = 0; i < facts.ndim; ++i) {
    if (PyLong_AsLongLong(PyTuple_GET_ITEM(strides, i)) != facts.strides[i]) return false;
  }
  return true;
}

}  // namespace

TensorReader::TensorReader(py::tuple plain, const py::tuple& probes, const py::tuple& versioned, const py::tuple& graded)
    : plain_types_(std::move(plain)) {
  PyGetSetDef* grad = nullptr;
  bool alike = true;
  for (const py::handle& type : plain_types_) {
    const py::object descriptor = attribute(type.ptr(), names().grad);
    if (!descriptor) throw py::error_already_set();
    PyGetSetDef* own = nullptr;
    if (Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) {
      own = reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
    }
    alike = alike && own != nullptr && (plain_.empty() || own == grad);
    grad = own;
    plain_.push_back(type.ptr());
  }
  if (alike) grad_ = grad;
  direct_ = !probes.empty() && find_interface() && find_handle(probes) && is_true(probes);
  if (direct_ && find_words(probes)) find_versions(versioned), find_gradients(graded);
}

bool TensorReader::find_interface() {
#ifdef _WIN32
  return false;
#else
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);  // whoever has tensors has loaded it
  if (library == nullptr) return false;
  bool all = true;
  const auto find = [&](Ask& function, const char* name) {
    function = reinterpret_cast<Ask>(dlsym(library, name));
    all = all && function != nullptr;
  };
  find(torch_.layout, "aoti_torch_get_layout");
  find(torch_.dtype, "aoti_torch_get_dtype");
  find(torch_.device_type, "aoti_torch_get_device_type");
  find(torch_.device_index, "aoti_torch_get_device_index");
  find(torch_.dim, "aoti_torch_get_dim");
  find(torch_.sizes, "aoti_torch_get_sizes");
  find(torch_.strides, "aoti_torch_get_strides");
  find(torch_.data, "aoti_torch_get_data_ptr");
  find(torch_.bytes, "aoti_torch_get_storage_size");
  find(torch_.offset, "aoti_torch_get_storage_offset");
  torch_.itemsize = reinterpret_cast<decltype(torch_.itemsize)>(dlsym(library, "aoti_torch_dtype_element_size"));
  all = all && torch_.itemsize != nullptr;
  dlclose(library);  // it stays where it was
  return all;
#endif
}

// An at::Tensor is one pointer, that which `_cdata` shows: the place in a Python tensor where it stands in all probes.
bool TensorReader::find_handle(const py::tuple& probes) {
  const Py_ssize_t size = plain_.empty() ? 0 : reinterpret_cast<PyTypeObject*>(plain_[0])->tp_basicsize;
  const Py_ssize_t word = sizeof(void*);
  for (handle_ = sizeof(PyObject); handle_ + word <= size; handle_ += word) {
    bool everywhere = true;
    for (const py::handle& probe : probes) {
      const auto found = *reinterpret_cast<std::uintptr_t*>(reinterpret_cast<char*>(probe.ptr()) + handle_);
      everywhere = everywhere && found == probe.attr("_cdata").cast<std::uintptr_t>();
    }
    if (everywhere) return true;
  }
  return false;
}

bool TensorReader::find_words(const py::tuple& probes) {
  std::vector<TensorWords::Probe> known(probes.size());
  for (std::size_t i = 0; i < probes.size(); ++i) {
    PyObject* probe = probes[i].ptr();
    if (!ask(probe, known[i].facts)) return false;
    known[i].object = object_of(probe);
    known[i].storage = probes[i].attr("untyped_storage")().attr("_cdata").cast<std::uintptr_t>();
  }
  return words_.find(known);
}

bool TensorReader::find_versions(const py::tuple& versioned) {
  std::vector<TensorWords::Versioned> known;
  for (const py::handle& pair : versioned) {
    const py::object tensor = pair[py::int_(0)], view = pair[py::int_(1)];
    known.push_back({tensor.attr("_version").cast<std::int64_t>(), object_of(tensor.ptr()), object_of(view.ptr())});
  }
  return words_.find_versions(known);
}

// Where a Python tensor begins with its at::Tensor, it holds torch's object, always; in releases before there is a mark
// in front that says whether it does.
bool TensorReader::find_gradients(const py::tuple& graded) {
  std::vector<GradientWords::Probe> known;
  for (const py::handle& tensor : graded) {
    const py::object gradient = tensor.attr("grad");
    if (!is_plain(tensor.ptr()) || !(gradient.is_none() || is_plain(gradient.ptr()))) return false;
    const bool none = gradient.is_none();
    known.push_back({object_of(tensor.ptr()), none ? 0 : object_of(gradient.ptr()), none ? 0 : address(gradient.ptr())});
  }
  return handle_ == sizeof(PyObject) && gradients_.find(known);
}

bool TensorReader::is_true(const py::tuple& probes) const {
  Facts asked{}, called{};
  std::vector<std::pair<std::int64_t, std::int64_t>> dtypes;  // as told by the two
  for (const py::handle& probe : probes) {
    if (!is_plain(probe.ptr()) || !ask(probe.ptr(), asked) || !call_methods(probe.ptr(), called)) return false;
    if (asked.ndim != called.ndim || asked.data != called.data || asked.bytes != called.bytes ||
        asked.offset != called.offset) {
      return false;
    }
    for (std::int64_t i = 0; i < asked.ndim; ++i) {
      if (asked.shape[i] != called.shape[i] || asked.strides[i] != called.strides[i]) return false;
    }
    if (static_cast<std::int64_t>(torch_.itemsize(static_cast<std::int32_t>(asked.dtype))) !=
        call(probe.ptr(), names().itemsize).cast<std::int64_t>()) {
      return false;
    }
    for (const auto& [one, other] : dtypes) {
      if ((one == asked.dtype) != (other == called.dtype)) return false;
    }
    dtypes.emplace_back(asked.dtype, called.dtype);
  }
  return true;
}

bool TensorReader::read(PyObject* tensor, Facts& facts) const {
  if (!is_plain(tensor)) return false;
  return direct_ ? ask(tensor, facts) : call_methods(tensor, facts);
}

bool TensorReader::has_room(PyObject* tensor, const Facts& facts) const {
  std::int64_t last = facts.offset;
  for (std::int64_t i = 0; i < facts.ndim; ++i) {
    if (facts.shape[i] == 0) return true;
    last += (facts.shape[i] - 1) * facts.strides[i];
  }
  const std::int64_t size = itemsize(tensor, facts);
  return size != 0 && (last + 1) * size <= facts.bytes;
}

std::int64_t TensorReader::itemsize(PyObject* tensor, const Facts& facts) const {
  if (direct_) return static_cast<std::int64_t>(torch_.itemsize(static_cast<std::int32_t>(facts.dtype)));
  const py::object called = call(tensor, names().itemsize);
  if (!called) PyErr_Clear();
  return called ? called.cast<std::int64_t>() : 0;
}

py::object TensorReader::grad(PyObject* tensor) const {
  if (gradients_.known() && is_plain(tensor)) {
    const std::uintptr_t gradient = gradients_.gradient_of(object_of(tensor));
    if (gradient == 0) return py::none();
    if (PyObject* known = gradients_.python_of(gradient)) return py::reinterpret_borrow<py::object>(known);
  }
  PyObject* found = grad_ != nullptr && is_plain(tensor) ? grad_->get(tensor, grad_->closure)
                                                         : PyObject_GetAttr(tensor, names().grad);
  if (found == nullptr) PyErr_Clear();
  return py::reinterpret_steal<py::object>(found);
}

bool TensorReader::ask(PyObject* tensor, Facts& facts) const {
  void* handle = reinterpret_cast<char*>(tensor) + handle_;
  std::int32_t layout = 0, dtype = 0, device_type = 0, device_index = 0;
  // the layout first: of a sparse tensor torch would complain on the standard error stream about what follows
  if (torch_.layout(handle, &layout) != 0 || layout != 0) return false;
  if (torch_.dtype(handle, &dtype) != 0 || torch_.device_type(handle, &device_type) != 0 ||
      (device_type != 0 && torch_.device_index(handle, &device_index) != 0) ||  // 0: the host, which is one
      torch_.dim(handle, &facts.ndim) != 0 ||
      torch_.data(handle, &facts.data) != 0 || torch_.bytes(handle, &facts.bytes) != 0 ||
      torch_.offset(handle, &facts.offset) != 0) {
    return false;
  }
  facts.dtype = dtype;
  facts.device = (static_cast<std::int64_t>(device_type) << 32) | static_cast<std::uint32_t>(device_index);
  if (facts.ndim == 0) return true;
  return torch_.sizes(handle, &facts.shape) == 0 && torch_.strides(handle, &facts.strides) == 0;
}

bool TensorReader::call_methods(PyObject* tensor, Facts& facts) const {
  const Names& n = names();
  const py::object dtype = attribute(tensor, n.dtype), device = attribute(tensor, n.device),
                   shape = attribute(tensor, n.shape);
  const py::object data = call(tensor, n.data_ptr), strides = call(tensor, n.stride),
                   offset = call(tensor, n.offset), storage = call(tensor, n.storage);
  const py::object bytes = storage ? call(storage.ptr(), n.nbytes) : py::object();
  if (!dtype || !device || !shape || !data || !strides || !offset || !bytes || !PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr())) {
    PyErr_Clear();
    return false;
  }
  facts.dtype = reinterpret_cast<std::int64_t>(dtype.ptr());  // there is one object for each
  facts.device = static_cast<std::int64_t>(py::hash(device));
  facts.ndim = PyTuple_GET_SIZE(shape.ptr());
  facts.data = static_cast<std::intptr_t>(data.cast<std::uintptr_t>());
  facts.bytes = bytes.cast<std::int64_t>();
  facts.offset = offset.cast<std::int64_t>();
  facts.own.clear();
  for (const py::object& values : {shape, strides}) {
    for (const py::handle& value : py::reinterpret_borrow<py::tuple>(values)) {
      facts.own.push_back(value.cast<std::int64_t>());
    }
  }
  facts.shape = facts.own.data();
  facts.strides = facts.shape + facts.ndim;
  return true;
}

py::object TensorReader::addresses(const py::list& tensors, const py::list& strides) const {
  const Py_ssize_t n = PyList_GET_SIZE(tensors.ptr());
  if (PyList_GET_SIZE(strides.ptr()) != n) return py::none();
  std::vector<std::int64_t> found(static_cast<std::size_t>(n));
  Facts facts{};
  Words words, first;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), i);
    const bool by_words = read_words(tensor, words);
    if (i == 0) first = words;
    // where marks differ, a change of sign may be put off in one of them
    if (words_.known() && (!by_words || words.kind[1] != first.kind[1])) return py::none();
    if (!read(tensor, facts) || !same_strides(facts, PyList_GET_ITEM(strides.ptr(), i))) return py::none();
    found[static_cast<std::size_t>(i)] = facts.data;
  }
  return py::bytearray(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(std::int64_t));
}

bool TensorReader::count_versions(const py::list& tensors) const {
  constexpr Py_ssize_t kAhead = 8;
  const Py_ssize_t n = PyList_GET_SIZE(tensors.ptr());
  if (!words_.knows_versions()) return false;
  std::vector<std::uint32_t*> counters(static_cast<std::size_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (i + kAhead < n) fetch_lines(address(PyList_GET_ITEM(tensors.ptr(), i + kAhead)), 8);
    PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), i);
    std::uint32_t* counter = is_plain(tensor) ? words_.counter_of(object_of(tensor)) : nullptr;
    if (counter == nullptr) return false;
    fetch_lines(address(counter), 4);
    counters[static_cast<std::size_t>(i)] = counter;
  }
  // as torch does it
  for (std::uint32_t* counter : counters) reinterpret_cast<std::atomic<std::uint32_t>*>(counter)->fetch_add(1);
  return true;
}

void bind_tensor_reader(py::module_& m) {
  py::class_<TensorReader>(m, "TensorReader", py::module_local())
      .def(py::init<py::tuple, const py::tuple&, const py::tuple&, const py::tuple&>(), py::arg("plain"), py::arg("probes"),
           py::arg("versioned") = py::tuple(), py::arg("graded") = py::tuple())
      .def_property_readonly("direct", &TensorReader::direct)
      .def_property_readonly("knows_words", &TensorReader::knows_words)
      .def_property_readonly("knows_versions", &TensorReader::knows_versions)
      .def_property_readonly("knows_gradients", &TensorReader::knows_gradients)
      .def("grad", [](const TensorReader& reader, const py::object& tensor) { return reader.grad(tensor.ptr()); }, py::arg("tensor"))
      .def("count_versions", &TensorReader::count_versions, py::arg("tensors"))
      .def("addresses", &TensorReader::addresses, py::arg("tensors"), py::arg("strides"));
}

}  // namespace sfplus
