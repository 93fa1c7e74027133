#include "containers.h"

#include <cstring>

namespace py = pybind11;

namespace sfplus {
namespace {

// As dlpack.h has them, version 1.
struct Device {
  std::int32_t type, index;
};
struct Dtype {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  Dtype dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct Exchange {
  std::uint32_t major, minor;
  void* older;
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*describe)(void* object, void* out);
  void* stream;
};

// Attributes and methods by name: Python compares such strings by their address.
struct Names {
  PyObject *params = PyUnicode_InternFromString("params"), *grad = PyUnicode_InternFromString("grad"),
           *part = PyUnicode_InternFromString("_local_tensor"), *data_ptr = PyUnicode_InternFromString("data_ptr"),
           *dtype = PyUnicode_InternFromString("dtype"), *get_device = PyUnicode_InternFromString("get_device"),
           *layout = PyUnicode_InternFromString("layout"), *shape = PyUnicode_InternFromString("shape"),
           *stride = PyUnicode_InternFromString("stride");
};

const Names& names() {
  static const Names* all = new Names;  // never freed: Python may be gone before C++ is
  return *all;
}

// An attribute that may be missing; false and no error then.
bool attribute(PyObject* object, PyObject* name, py::object& value) {
  value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
  if (!value) PyErr_Clear();
  return static_cast<bool>(value);
}

}  // namespace

// In a first pass the numbers are written down, in later ones compared with those.
struct Witness::Look {
  std::vector<std::intptr_t>& noted;
  std::vector<std::intptr_t>& places;
  const bool writes;
  bool moved = false;
  std::size_t next = 0, next_place = 0, given = 0;
  py::list params, gradients;  // those that have one

  Look(std::vector<std::intptr_t>& noted, std::vector<std::intptr_t>& places, bool writes)
      : noted(noted), places(places), writes(writes) {}

  bool same(std::intptr_t number) {
    if (writes) {
      noted.push_back(number);
      return true;
    }
    return next < noted.size() && noted[next++] == number;
  }
  bool same(const void* address) { return same(reinterpret_cast<std::intptr_t>(address)); }

  // As `same`, for what is allowed to change.
  void place(std::intptr_t number) {
    if (next_place == places.size()) places.push_back(~number);
    moved |= places[next_place] != number;
    places[next_place++] = number;
  }
  bool same_or_place(std::intptr_t number, bool may_move) {
    if (!may_move) return same(number);
    place(number);
    return true;
  }
};

Witness::Witness(py::object exchange, py::tuple plain, py::tuple names)
    : exchange_(std::move(exchange)), plain_types_(std::move(plain)), name_strings_(std::move(names)) {
  for (const py::handle& type : plain_types_) plain_.push_back(type.ptr());
  for (const py::handle& name : name_strings_) names_.push_back(name.ptr());
  if (exchange_.is_none()) return;
  void* table = PyCapsule_GetPointer(exchange_.ptr(), "dlpack_exchange_api");
  if (table == nullptr) throw py::error_already_set();
  const auto* api = static_cast<const Exchange*>(table);
  if (api->major == 1) describe_ = api->describe;  // another major version has another layout
}

bool Witness::note(const py::object& groups, const py::object& state, const py::object& gradients) {
  noted_.clear();
  places_.clear();
  Look look(noted_, places_, true);
  valid_ = walk(look, groups.ptr(), state.ptr(), gradients.ptr());
  places_.clear();  // so that the next look finds the gradients elsewhere, and they are brought to the plan
  return valid_;
}

py::object Witness::look(const py::object& groups, const py::object& state, const py::object& gradients) {
  if (!valid_) return py::none();
  Look look(noted_, places_, false);
  if (!walk(look, groups.ptr(), state.ptr(), gradients.ptr()) || look.next != noted_.size()) {
    places_.clear();
    return py::none();
  }
  return py::make_tuple(look.params, look.gradients, look.moved);
}

bool Witness::walk(Look& look, PyObject* groups, PyObject* state, PyObject* gradients) {
  if (!PyList_Check(groups) || !PyDict_Check(state)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    PyObject* group = PyList_GET_ITEM(groups, i);
    if (!PyDict_Check(group) || !see_group(look, group, gradients)) return false;
  }
  return see_states(look, state);
}

bool Witness::see_group(Look& look, PyObject* group, PyObject* gradients) {
  PyObject* params = PyDict_GetItemWithError(group, names().params);
  if (params == nullptr || !PyList_Check(params) || !look.same(PyList_GET_SIZE(params))) return false;
  const bool reads = gradients == Py_True, given = PyList_Check(gradients);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    // what is called below may change the list
    const auto param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params, i));
    if (!look.same(param.ptr())) return false;  // where it is, is looked at beside its state
    py::object gradient;
    if (reads) {
      if (!attribute(param.ptr(), names().grad, gradient)) return false;
      if (!gradient.is_none() && !(is_plain(param.ptr()) && is_plain(gradient.ptr()))) return false;
    } else if (given) {
      const auto number = static_cast<Py_ssize_t>(look.given++);
      if (number >= PyList_GET_SIZE(gradients)) return false;
      gradient = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(gradients, number));
    } else {
      continue;
    }
    if (!look.same(gradient.is_none() ? 0 : 1)) return false;
    if (gradient.is_none()) continue;
    if (!see_tensor(look, gradient.ptr(), true)) return false;
    if (PyList_Append(look.params.ptr(), param.ptr()) != 0 ||
        PyList_Append(look.gradients.ptr(), gradient.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
  return true;
}

bool Witness::see_states(Look& look, PyObject* state) {
  if (!look.same(PyDict_GET_SIZE(state))) return false;
  PyObject *param, *own;
  Py_ssize_t at = 0;
  // in the order of the dict: to look a tensor up costs a call of its __hash__
  while (PyDict_Next(state, &at, &param, &own)) {
    if (!look.same(param) || !PyDict_Check(own) || !see_tensor(look, param, false)) return false;
    for (PyObject* name : names_) {
      PyObject* value = PyDict_GetItemWithError(own, name);
      if (!look.same(value == nullptr ? 0 : 1)) return false;
      if (value != nullptr && !see_tensor(look, value, false)) return false;
    }
  }
  return true;
}

bool Witness::is_plain(PyObject* tensor) const {
  for (const PyObject* type : plain_) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == type) return true;
  }
  return false;
}

bool Witness::see_tensor(Look& look, PyObject* tensor, bool may_move) {
  py::object part;  // of a DTensor what this process holds
  if (!is_plain(tensor)) {
    if (!attribute(tensor, names().part, part) || !is_plain(part.ptr())) return false;
    tensor = part.ptr();
  }
  if (describe_ == nullptr) return see_by_methods(look, tensor, may_move);
  Tensor seen;
  if (describe_(tensor, &seen) != 0) {  // on a device that DLPack does not know, such as "meta"
    PyErr_Clear();
    return false;
  }
  std::int64_t kind = 0, numel = 1;
  static_assert(sizeof(Dtype) == 4, "packed into half a number");
  std::memcpy(&kind, &seen.dtype, sizeof seen.dtype);
  kind |= (static_cast<std::int64_t>(seen.device.type) << 48) | (static_cast<std::int64_t>(seen.device.index) << 32);
  if (!look.same(kind) || !look.same(seen.ndim)) return false;
  for (int i = 0; i < seen.ndim; ++i) {
    if (!look.same(seen.shape[i]) || !look.same_or_place(seen.strides[i], may_move)) return false;
    numel *= seen.shape[i];
  }
  const auto data = reinterpret_cast<std::intptr_t>(seen.data) + static_cast<std::intptr_t>(seen.byte_offset);
  return (data != 0 || numel == 0) && look.same_or_place(data, may_move);
}

bool Witness::see_by_methods(Look& look, PyObject* tensor, bool may_move) {
  const auto call = [tensor](PyObject* method) {
    return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, method));
  };
  py::object dtype, layout, shape;
  const py::object data = call(names().data_ptr), device = call(names().get_device), strides = call(names().stride);
  if (!data || !device || !strides || !attribute(tensor, names().dtype, dtype) ||
      !attribute(tensor, names().layout, layout) || !attribute(tensor, names().shape, shape) ||
      !PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr())) {
    PyErr_Clear();
    return false;
  }
  const Py_ssize_t ndim = PyTuple_GET_SIZE(shape.ptr());
  if (!look.same(dtype.ptr()) || !look.same(layout.ptr()) || !look.same(device.cast<std::intptr_t>()) ||
      !look.same(ndim)) {
    return false;
  }
  std::int64_t numel = 1;
  for (Py_ssize_t i = 0; i < ndim; ++i) {
    const std::intptr_t size = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape.ptr(), i));
    if (!look.same(size) ||
        !look.same_or_place(PyLong_AsSsize_t(PyTuple_GET_ITEM(strides.ptr(), i)), may_move)) {
      return false;
    }
    numel *= size;
  }
  const auto address = data.cast<std::uintptr_t>();
  return (address != 0 || numel == 0) && look.same_or_place(static_cast<std::intptr_t>(address), may_move);
}

void bind_containers(py::module_& m) {
  py::class_<Witness>(m, "Witness", py::module_local())
      .def(py::init<py::object, py::tuple, py::tuple>(), py::arg("exchange"), py::arg("plain"), py::arg("names"))
      .def("note", &Witness::note, py::arg("groups"), py::arg("state"), py::arg("gradients"))
      .def("look", &Witness::look, py::arg("groups"), py::arg("state"), py::arg("gradients"));
}

}  // namespace sfplus
