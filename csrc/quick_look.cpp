#include "quick_look.h"

#include "fetch.h"

namespace py = pybind11;

namespace sfplus {
namespace {

// Tensors ahead: as long as memory takes to come.
constexpr std::size_t kAhead = 8, kGradientsAhead = 4;

PyObject* params_of(PyObject* group) {
  static PyObject* const name = PyUnicode_InternFromString("params");
  PyObject* params = PyDict_Check(group) ? PyDict_GetItemWithError(group, name) : nullptr;
  if (params == nullptr) PyErr_Clear();
  return params != nullptr && PyList_Check(params) ? params : nullptr;
}

}  // namespace

int place_of(const std::vector<PyObject*>& names, PyObject* key) {
  const int n = static_cast<int>(names.size());
  for (int i = 0; i < n; ++i) {
    if (names[i] == key) return i;
  }
  if (!PyUnicode_CheckExact(key)) return -1;
  for (int i = 0; i < n; ++i) {  // the same letters in another string
    if (PyUnicode_Compare(names[i], key) == 0) return i;
  }
  return -1;
}

void QuickLook::note(PyObject* groups, PyObject* state, bool reads) {
  sizes_.clear(), given_.clear(), owns_.clear(), rows_.clear(), gradients_.clear(), forms_.clear();
  reads_ = reads;
  valid_ = reader_.knows_words() && names_.size() < 16 && note_groups(groups, reads) && note_states(state);
  rows_.resize(rows_.size() + kAhead);  // which are fetched ahead of the last ones, and nothing else
}

bool QuickLook::note_groups(PyObject* groups, bool reads) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    PyObject* params = params_of(PyList_GET_ITEM(groups, i));
    if (params == nullptr) return false;
    sizes_.push_back(PyList_GET_SIZE(params));
    for (Py_ssize_t j = 0; j < PyList_GET_SIZE(params); ++j) {
      const auto param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params, j));
      Given given{param.ptr(), 0, 0, -1};
      if (reads) {
        if (!reader_.is_plain(param.ptr())) return false;
        const py::object gradient = reader_.grad(param.ptr());
        if (!gradient) return false;
        if (!gradient.is_none()) {
          if (!note_tensor(gradient.ptr(), gradients_)) return false;
          given.row = static_cast<std::int32_t>(gradients_.size() - 1);
        }
        given.impl = reader_.object_of(param.ptr());
        given.way = reader_.way_to_gradient(given.impl);
      }
      given_.push_back(given);
    }
  }
  return true;
}

bool QuickLook::note_states(PyObject* state) {
  state_ = state;
  state_version_ = versions_.of(state);
  PyObject *param, *own, *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(state, &at, &param, &own);) {
    if (!PyDict_Check(own) || !note_tensor(param, rows_)) return false;
    const std::size_t first = rows_.size();
    std::uint64_t keys = 0;
    for (Py_ssize_t in = 0; PyDict_Next(own, &in, &key, &value);) {
      const int place = place_of(names_, key);
      if (place < 0) continue;  // somebody else's
      keys |= static_cast<std::uint64_t>(place) << 4 * (rows_.size() - first);
      if (!note_tensor(value, rows_)) return false;
    }
    owns_.push_back({param, own, versions_.of(own), address(reinterpret_cast<PyDictObject*>(own)->ma_keys), keys,
                     static_cast<std::uint32_t>(rows_.size() - first)});
  }
  return true;
}

bool QuickLook::note_tensor(PyObject* tensor, std::vector<Row>& rows) {
  Words words;
  if (!reader_.read_words(tensor, words)) return false;
  const std::uintptr_t impl = reader_.object_of(tensor);
  rows.push_back({tensor, impl, reader_.storage_of(impl), {words.storage[0], words.storage[1], words.storage[2]}, form_of(tensor, words)});
  return true;
}

// Those that were added last are looked through: tensors of one parameter are mostly alike, and parameters of one model.
std::uint32_t QuickLook::form_of(PyObject* tensor, const Words& words) {
  constexpr std::size_t kLooked = 16;
  for (std::size_t i = forms_.size(); i-- > 0 && i + kLooked >= forms_.size();) {
    if (forms_[i].words.alike(words)) return static_cast<std::uint32_t>(i);
  }
  Form form;
  form.words = words;
  Facts facts{};
  if (reader_.read(tensor, facts)) {
    form.dtype = facts.dtype, form.device = facts.device, form.itemsize = reader_.itemsize(tensor, facts);
  }
  forms_.push_back(form);
  return static_cast<std::uint32_t>(forms_.size() - 1);
}

bool QuickLook::same(PyObject* groups, PyObject* state, py::list& gradients, bool& moved) {
  if (!valid_ || !PyList_Check(groups) || !PyDict_Check(state) || !same_groups(groups, gradients)) return false;
  // From here on nothing of Python's runs, which could change what was looked at.
  for (std::size_t i = 0; i < gradients_.size(); ++i) {
    if (i + kAhead < gradients_.size()) fetch(gradients_[i + kAhead]);
    if (!same_gradient(gradients_[i], PyList_GET_ITEM(gradients.ptr(), static_cast<Py_ssize_t>(i)), moved)) return false;
  }
  return same_states(state);
}

bool QuickLook::same_groups(PyObject* groups, py::list& gradients) const {
  if (PyList_GET_SIZE(groups) != static_cast<Py_ssize_t>(sizes_.size())) return false;
  std::size_t next = 0;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    PyObject* group = i < static_cast<std::size_t>(PyList_GET_SIZE(groups)) ? PyList_GET_ITEM(groups, static_cast<Py_ssize_t>(i)) : nullptr;
    PyObject* params = group == nullptr ? nullptr : params_of(group);
    if (params == nullptr || PyList_GET_SIZE(params) != sizes_[i]) return false;
    for (Py_ssize_t j = 0; j < sizes_[i]; ++j, ++next) {
      const Given& given = given_[next];
      if (j >= PyList_GET_SIZE(params) || PyList_GET_ITEM(params, j) != given.param) return false;
      if (!reads_) continue;
      if (next + kGradientsAhead < given_.size()) {
        const Given& ahead = given_[next + kGradientsAhead];
        fetch_lines(address(ahead.param), 24);
        fetch_lines(ahead.impl, 40);
        fetch_lines(ahead.way, 8);
        if (ahead.row >= 0) {
          fetch_lines(gradients_[ahead.row].impl, 64);
          fetch_lines(address(gradients_[ahead.row].object), 24);
        }
      }
      // what is called may change the list
      const auto param = py::reinterpret_borrow<py::object>(given.param);
      if (!reader_.is_plain(given.param)) return false;
      const py::object gradient = reader_.grad(given.param);
      if (!gradient || gradient.is_none() != (given.row < 0)) return false;
      if (given.row >= 0 && PyList_Append(gradients.ptr(), gradient.ptr()) != 0) throw py::error_already_set();
    }
  }
  return true;
}

bool QuickLook::same_states(PyObject* state) {
  PyObject *param, *dict;
  Py_ssize_t at = 0;
  const Row* row = rows_.data();
  // A dict that was not modified holds what was noted, alive, and need not be gone through.
  const bool unmodified = state == state_ && versions_.same(state, state_version_);
  if (PyDict_GET_SIZE(state) != static_cast<Py_ssize_t>(owns_.size())) return false;
  for (std::size_t i = 0; i < owns_.size(); ++i) {
    Own& own = owns_[i];
    if (i + 2 < owns_.size()) {
      fetch_lines(address(owns_[i + 2].dict), 48);
      if (!versions_.known()) fetch_lines(owns_[i + 2].entries, 160);
    }
    if (!unmodified && (!PyDict_Next(state, &at, &param, &dict) || param != own.param || dict != own.dict || !PyDict_Check(dict))) {
      return false;
    }
    fetch(row[kAhead]);
    if (!same_tensor(*row++)) return false;
    if (!versions_.same(own.dict, own.version)) {
      if (!same_state(own, row)) return false;
      own.version = versions_.of(own.dict);
      row += own.n_rows;
      continue;
    }
    for (const Row* end = row + own.n_rows; row != end; ++row) {
      fetch(row[kAhead]);
      if (!same_tensor(*row)) return false;
    }
  }
  state_ = state;
  state_version_ = versions_.of(state);
  return true;
}

bool QuickLook::same_state(const Own& own, const Row* rows) const {
  PyObject *key, *value;
  Py_ssize_t at = 0;
  std::uint32_t seen = 0;
  while (PyDict_Next(own.dict, &at, &key, &value)) {
    const std::uint64_t expected = own.keys >> 4 * seen & 15;
    const bool as_expected = seen < own.n_rows && key == names_[expected];
    if (!as_expected) {
      const int place = place_of(names_, key);
      if (place < 0) continue;
      if (seen == own.n_rows || place != static_cast<int>(expected)) return false;
    }
    fetch(rows[seen + kAhead]);
    if (value != rows[seen].object || !same_tensor(rows[seen])) return false;
    ++seen;
  }
  return seen == own.n_rows;
}

bool QuickLook::same_tensor(const Row& row) const {
  return reader_.is_plain(row.object) && reader_.object_of(row.object) == row.impl &&
         reader_.is_at(row.impl, row.storage, row.first) && reader_.is_like(row.impl, forms_[row.form].words);
}

bool QuickLook::same_gradient(Row& row, PyObject* gradient, bool& moved) {
  if (gradient == row.object && same_tensor(row)) return true;
  Words words;
  const Form form = forms_[row.form];  // a copy: there may be more of them below
  if (forms_.size() > 64 + 8 * given_.size() || !reader_.read_words(gradient, words) || form.itemsize == 0 ||
      !form.words.same_shape(words) || !words.has_room(form.itemsize)) {
    return false;
  }
  if (!form.words.same_kind(words)) {
    Facts facts{};
    if (!reader_.read(gradient, facts) || facts.dtype != form.dtype || facts.device != form.device) return false;
  }
  moved = true;
  const std::uintptr_t impl = reader_.object_of(gradient);
  row = {gradient, impl, reader_.storage_of(impl), {words.storage[0], words.storage[1], words.storage[2]},
         form.words.alike(words) ? row.form : form_of(gradient, words)};
  return true;
}

void QuickLook::fetch(const Row& row) const {
  fetch_lines(address(row.object), 24);
  fetch_lines(row.impl, 184);
  fetch_lines(row.storage, 56);
}

}  // namespace sfplus
