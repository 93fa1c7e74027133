#include "containers.h"

#include <algorithm>
#include <iterator>

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

constexpr std::int64_t kWords = 1;

}  // namespace

// In a first pass the numbers are written down, in later ones compared with those.
struct Witness::Look {
  std::vector<std::int64_t>& noted;
  std::vector<std::int64_t>& places;
  const bool writes;
  bool moved = false, good = true;
  std::size_t next = 0, next_place = 0, given = 0;
  Py_ssize_t next_state = 0;  // place in the dict of states
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
  // As many at once.
  bool same(const std::int64_t* numbers, std::size_t count) {
    if (writes) {
      noted.insert(noted.end(), numbers, numbers + count);
      return true;
    }
    if (noted.size() - next < count) return false;
    const std::int64_t* before = noted.data() + next;
    next += count;
    std::int64_t differ = 0;
    for (std::size_t i = 0; i < count; ++i) differ |= before[i] ^ numbers[i];
    return differ == 0;
  }

  // What was noted here, for whoever cannot say it himself now.
  std::int64_t recall() { return next < noted.size() ? noted[next++] : 0; }

  bool same(const void* address) { return same(static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(address))); }

  // As `same`, for what is allowed to change: whether it has.
  bool moves(const std::int64_t* numbers, std::size_t count) {
    const bool known = places.size() - next_place >= count;
    if (!known) places.resize(next_place + count);
    std::int64_t* before = places.data() + next_place;
    std::int64_t differ = known ? 0 : 1;
    for (std::size_t i = 0; i < count; ++i) {
      differ |= before[i] ^ numbers[i];
      before[i] = numbers[i];
    }
    next_place += count;
    moved |= differ != 0;
    return differ != 0;
  }
};

Witness::Witness(py::object reader, py::tuple names)
    : reader_object_(std::move(reader)),
      reader_(reader_object_.cast<const TensorReader&>()),
      name_strings_(std::move(names)),
      quick_(reader_, names_) {
  for (const py::handle& name : name_strings_) names_.push_back(name.ptr());
}

bool Witness::note(const py::object& groups, const py::object& state, const py::object& gradients) {
  noted_.clear();
  places_.clear();
  Look look(noted_, places_, true);
  valid_ = walk(look, groups.ptr(), state.ptr(), gradients.ptr());
  places_.clear();  // so that the next look finds the gradients elsewhere, and they are brought to the plan
  quick_.forget();
  return valid_;
}

py::object Witness::look(const py::object& groups, const py::object& state, const py::object& gradients) {
  if (!valid_) return py::none();
  const bool reads = gradients.ptr() == Py_True, given = PyList_Check(gradients.ptr());
  py::list found;
  bool moved = false;
  if (!given && quick_.same(groups.ptr(), state.ptr(), found, moved)) return py::make_tuple(found, moved);
  if (quick_.forget()) places_.clear();  // it looked last, and did not note places here
  Look look(noted_, places_, false);
  if (!walk(look, groups.ptr(), state.ptr(), gradients.ptr()) || look.next != noted_.size()) {
    places_.clear();
    return py::none();
  }
  if (!given) quick_.note(groups.ptr(), state.ptr(), reads);
  return py::make_tuple(look.gradients, look.moved);
}

bool Witness::walk(Look& look, PyObject* groups, PyObject* state, PyObject* gradients) {
  if (!PyList_Check(groups) || !PyDict_Check(state) || !look.same(PyDict_GET_SIZE(state))) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    PyObject* group = PyList_GET_ITEM(groups, i);
    if (!PyDict_Check(group) || !see_group(look, group, state, gradients)) return false;
  }
  while (see_next_state(look, state, nullptr)) {
  }
  return look.good;
}

bool Witness::see_group(Look& look, PyObject* group, PyObject* state, PyObject* gradients) {
  PyObject* params = PyDict_GetItemWithError(group, names().params);
  if (params == nullptr || !PyList_Check(params) || !look.same(PyList_GET_SIZE(params))) return false;
  const bool reads = gradients == Py_True, given = PyList_Check(gradients);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    // what is called below may change the list
    const auto param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params, i));
    if (!look.same(param.ptr())) return false;
    // mostly they follow each other as the parameters do; the others come after all
    see_next_state(look, state, param.ptr());
    if (!look.good) return false;
    py::object gradient;
    if (reads) {
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

// In the order of the dict, for to look a tensor up costs a call of its __hash__: the next one, if it is that of
// `wanted`, if anything is; false if there was none. `good` becomes false if it is not as it was.
bool Witness::see_next_state(Look& look, PyObject* state, PyObject* wanted) {
  PyObject *param, *own;
  Py_ssize_t at = look.next_state;
  if (!look.good || !PyDict_Next(state, &at, &param, &own) || (wanted != nullptr && param != wanted)) return false;
  look.next_state = at;
  look.good = look.same(param) && PyDict_Check(own) && see_tensor(look, param) && see_state(look, own);
  return true;
}

bool Witness::see_state(Look& look, PyObject* own) {
  PyObject *key, *value;
  Py_ssize_t at = 0;
  while (PyDict_Next(own, &at, &key, &value)) {
    const int number = place_of(names_, key);
    if (number >= 0 && !(look.same(number) && see_tensor(look, value))) return false;
  }
  return look.same(-1);
}

// Of a DTensor what this process holds; null if it is none.
PyObject* Witness::plain_part(Look& look, PyObject* tensor) {
  if (reader_.is_plain(tensor)) return tensor;
  look.part = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, names().part));
  if (!look.part) PyErr_Clear();
  return look.part.ptr();
}

bool Witness::see_tensor(Look& look, PyObject* tensor) {
  PyObject* part = plain_part(look, tensor);
  if (part == nullptr) return false;
  // a mark in front says which of the two ways it is
  if (!look.writes && look.recall() == kWords) {
    if (look.next == noted_.size() || !reader_.is_plain(part)) return false;
    const std::int64_t* row = noted_.data() + look.next;
    look.next += TensorWords::noted(row[0]);
    return look.next <= noted_.size() && reader_.are_words(part, row);
  }
  Facts& facts = look.facts;
  if (!reader_.read(part, facts) || (facts.data == 0 && facts.numel() != 0)) return false;
  Words words;
  if (look.writes && reader_.read_words(part, words)) {
    noted_.push_back(kWords);
    TensorWords::note(words, noted_);
    return true;
  }
  if (look.writes) noted_.push_back(0);
  const std::int64_t numbers[] = {facts.dtype, facts.device, facts.data, facts.bytes, facts.offset, facts.ndim};
  const auto ndim = static_cast<std::size_t>(facts.ndim);
  return look.same(numbers, std::size(numbers)) && look.same(facts.shape, ndim) && look.same(facts.strides, ndim);
}

// It may be elsewhere in each step, and another object each time, with other marks of torch's own.
bool Witness::see_gradient(Look& look, PyObject* tensor) {
  PyObject* part = plain_part(look, tensor);
  if (part == nullptr) return false;
  Facts& facts = look.facts;
  Words words;
  const bool by_words = reader_.read_words(part, words);
  if (!by_words || look.writes) {
    if (!reader_.read(part, facts)) return false;
  }
  if (!look.same(by_words ? words.ndim : facts.ndim)) return false;
  const auto ndim = static_cast<std::size_t>(by_words ? words.ndim : facts.ndim);
  if (!look.same(by_words ? words.sizes : facts.shape, ndim)) return false;
  if (look.writes) {
    const std::int64_t kind[] = {facts.dtype, facts.device, reader_.itemsize(part, facts), by_words ? words.kind[0] : 0,
                                 by_words ? words.kind[1] : 0};
    return look.same(kind, std::size(kind)) && (facts.data != 0 || facts.numel() == 0) && reader_.has_room(part, facts);
  }
  const std::int64_t dtype = look.recall(), device = look.recall(), itemsize = look.recall();
  const std::int64_t marks[] = {look.recall(), look.recall()};
  if (by_words && (marks[0] != words.kind[0] || marks[1] != words.kind[1])) {
    if (!reader_.read(part, facts) || facts.dtype != dtype || facts.device != device) return false;
  } else if (!by_words && (facts.dtype != dtype || facts.device != device)) {
    return false;
  }
  if (by_words) {
    // with the marks: they say whether a change of sign was put off, which whoever brings the gradients looks at
    std::int64_t row[3 + Words::kStorage + Words::kDims] = {words.offset, words.kind[0], words.kind[1]};
    std::int64_t* end = std::copy_n(words.storage, Words::kStorage, row + 3);
    end = std::copy_n(words.strides, words.ndim, end);
    return !look.moves(row, static_cast<std::size_t>(end - row)) || words.has_room(itemsize);
  }
  const std::int64_t numbers[] = {facts.data, facts.bytes, facts.offset};
  look.moves(numbers, std::size(numbers));
  look.moves(facts.strides, ndim);
  return (facts.data != 0 || facts.numel() == 0) && reader_.has_room(part, facts);
}

void bind_containers(py::module_& m) {
  py::class_<Witness>(m, "Witness", py::module_local())
      .def(py::init<py::object, py::tuple>(), py::arg("reader"), py::arg("names"))
      .def_property_readonly("knows_dicts", &Witness::knows_dicts)
      .def("note", &Witness::note, py::arg("groups"), py::arg("state"), py::arg("gradients"))
      .def("look", &Witness::look, py::arg("groups"), py::arg("state"), py::arg("gradients"));
}

}  // namespace sfplus
