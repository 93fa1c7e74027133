#include "containers.h"

namespace py = pybind11;

namespace sfplus {
namespace {

// Keys and attributes by name: Python compares such strings by their address.
struct Names {
  PyObject *params = PyUnicode_InternFromString("params"), *part = PyUnicode_InternFromString("_local_tensor");
};

const Names& names() {
  static const Names* all = new Names;  // never freed: Python may be gone before C++ is
  return *all;
}

}  // namespace

// In a first pass the numbers are written down, in later ones compared with those.
struct Witness::Look {
  std::vector<std::int64_t>& noted;
  std::vector<std::int64_t>& places;
  const bool writes;
  bool moved = false;
  std::size_t next = 0, next_place = 0, next_near = 0, given = 0;
  py::list gradients;
  py::object part;  // of the DTensor that was read last
  Facts facts{};

  Look(std::vector<std::int64_t>& noted, std::vector<std::int64_t>& places, bool writes)
      : noted(noted), places(places), writes(writes) {}

  bool same(std::int64_t number) {
    if (writes) {
      noted.push_back(number);
      return true;
    }
    return next < noted.size() && noted[next++] == number;
  }
  bool same(const void* address) { return same(static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(address))); }

  // As `same`, for what is allowed to change.
  void place(std::int64_t number) {
    if (next_place == places.size()) places.push_back(~number);
    moved |= places[next_place] != number;
    places[next_place++] = number;
  }
};

Witness::Witness(py::object reader, py::tuple names)
    : reader_object_(std::move(reader)),
      reader_(reader_object_.cast<const TensorReader&>()),
      name_strings_(std::move(names)) {
  for (const py::handle& name : name_strings_) names_.push_back(name.ptr());
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
  return py::make_tuple(look.gradients, look.moved);
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
      hurry(look, reader_.near(param.ptr(), true));
      gradient = reader_.grad(param.ptr());
      if (!gradient) return false;
      if (!gradient.is_none() && !(reader_.is_plain(param.ptr()) && reader_.is_plain(gradient.ptr()))) return false;
    } else if (given) {
      const auto number = static_cast<Py_ssize_t>(look.given++);
      if (number >= PyList_GET_SIZE(gradients)) return false;
      gradient = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(gradients, number));
    } else {
      continue;
    }
    if (!look.same(gradient.is_none() ? 0 : 1)) return false;
    if (gradient.is_none()) continue;
    if (!see_gradient(look, gradient.ptr())) return false;
    if (PyList_Append(look.gradients.ptr(), gradient.ptr()) != 0) throw py::error_already_set();
  }
  return true;
}

bool Witness::see_states(Look& look, PyObject* state) {
  if (!look.same(PyDict_GET_SIZE(state))) return false;
  PyObject *param, *own;
  Py_ssize_t at = 0;
  // in the order of the dict: to look a tensor up costs a call of its __hash__
  while (PyDict_Next(state, &at, &param, &own)) {
    if (!look.same(param) || !PyDict_Check(own) || !see_tensor(look, param) || !see_state(look, own)) return false;
  }
  return true;
}

bool Witness::see_state(Look& look, PyObject* own) {
  PyObject *key, *value;
  Py_ssize_t at = 0;
  const auto keys = reinterpret_cast<std::uintptr_t>(reinterpret_cast<PyDictObject*>(own)->ma_keys);
  hurry(look, {reinterpret_cast<std::uintptr_t>(own), keys, keys + 256});
  while (PyDict_Next(own, &at, &key, &value)) {
    const int number = number_of(key);
    if (number >= 0 && !(look.same(number) && see_tensor(look, value))) return false;
  }
  return look.same(-1);
}

// Which of the names it is, or -1 for a key of somebody else's.
int Witness::number_of(PyObject* key) const {
  const int n = static_cast<int>(names_.size());
  for (int i = 0; i < n; ++i) {
    if (names_[i] == key) return i;
  }
  if (!PyUnicode_CheckExact(key)) return -1;
  for (int i = 0; i < n; ++i) {  // the same letters in another string
    if (PyUnicode_Compare(names_[i], key) == 0) return i;
  }
  return -1;
}

// A pass waits for memory most of its time: what it will come by soon is fetched ahead, if it is where it was.
void Witness::hurry(Look& look, const Near& now) {
  constexpr std::size_t kAhead = 4;
  const std::size_t place = look.next_near++;
  if (place + kAhead < near_.size()) near_[place + kAhead].prefetch();
  if (place == near_.size()) near_.emplace_back();
  near_[place] = now;
}

bool Witness::read(Look& look, PyObject* tensor) {
  hurry(look, reader_.near(tensor, false));
  Facts& facts = look.facts;
  if (reader_.is_plain(tensor)) {
    if (!reader_.read(tensor, facts)) return false;
  } else {  // of a DTensor what this process holds
    look.part = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, names().part));
    if (!look.part) PyErr_Clear();
    if (!look.part || !reader_.read(look.part.ptr(), facts)) return false;
  }
  if (!look.same(facts.dtype) || !look.same(facts.device) || !look.same(facts.ndim)) return false;
  for (std::int64_t i = 0; i < facts.ndim; ++i) {
    if (!look.same(facts.shape[i])) return false;
  }
  return facts.data != 0 || facts.numel() == 0;
}

bool Witness::see_tensor(Look& look, PyObject* tensor) {
  if (!read(look, tensor)) return false;
  const Facts& facts = look.facts;
  for (std::int64_t i = 0; i < facts.ndim; ++i) {
    if (!look.same(facts.strides[i])) return false;
  }
  return look.same(facts.data) && look.same(facts.bytes) && look.same(facts.offset);
}

// It may be elsewhere in each step; whether its storage has room for it was asked of another one.
bool Witness::see_gradient(Look& look, PyObject* tensor) {
  if (!read(look, tensor)) return false;
  const Facts& facts = look.facts;
  for (std::int64_t i = 0; i < facts.ndim; ++i) look.place(facts.strides[i]);
  look.place(facts.data);
  return reader_.has_room(tensor, facts);
}

void bind_containers(py::module_& m) {
  py::class_<Witness>(m, "Witness", py::module_local())
      .def(py::init<py::object, py::tuple>(), py::arg("reader"), py::arg("names"))
      .def("note", &Witness::note, py::arg("groups"), py::arg("state"), py::arg("gradients"))
      .def("look", &Witness::look, py::arg("groups"), py::arg("state"), py::arg("gradients"));
}

}  // namespace sfplus
