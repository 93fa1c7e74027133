// The same question as in containers.h, answered sooner where the answer is yes and all tensors are plain ones.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "dict_versions.h"
#include "tensor_reader.h"

namespace sfplus {

// Which of the names a key is, or -1.
int place_of(const std::vector<PyObject*>& names, PyObject* key);

// What the last look found, tensor by tensor: which objects, where torch keeps what it knows of them, and those words.
//
// Where all objects are the same ones it says so. Where one is another, though it may be as good, it says nothing, and
// the Witness looks closer. Knowing beforehand what it will come by, it fetches that ahead: a pass over small tensors
// waits for memory most of its time.
class QuickLook {
 public:
  // `reader` and `names` as of the Witness, which owns them.
  QuickLook(const TensorReader& reader, const std::vector<PyObject*>& names) : reader_(reader), names_(names) {}

  // Remember what is there, if it is of the kind that can be looked at like this. `reads`: p.grad, too.
  void note(PyObject* groups, PyObject* state, bool reads);

  // Whether all is as it was noted. Gradients, which are written to `gradients`, may be others of the same kind.
  bool same(PyObject* groups, PyObject* state, pybind11::list& gradients, bool& moved);

  // Whether dicts that were not modified are known by their number.
  bool knows_dicts() const { return versions_.known(); }

  // Say nothing until the next note; whether there was anything to forget.
  bool forget() { return std::exchange(valid_, false); }

 private:
  // What many tensors have in common; of the words of torch all but the addresses.
  struct Form {
    Words words;
    std::int64_t dtype = 0, device = 0, itemsize = 0;
  };
  struct Row {
    PyObject* object;
    std::uintptr_t impl, storage;  // torch's objects
    std::int64_t first[3];         // words of the storage: where its memory is, and who frees it
    std::uint32_t form;
  };
  struct Own {  // of the dict of states
    PyObject *param, *dict;
    std::uint64_t version;   // of `dict`
    std::uintptr_t entries;  // where Python keeps those of `dict`: for fetching ahead
    std::uint64_t keys;      // which names its tensors have, in their order, four bits each
    std::uint32_t n_rows;    // so many
  };
  struct Given {  // of a parameter in the groups
    PyObject* param;
    std::uintptr_t impl, way;       // for fetching ahead
    std::int32_t row;               // of its gradient, or -1
  };

  bool note_groups(PyObject* groups, bool reads);
  bool note_states(PyObject* state);
  bool note_tensor(PyObject* tensor, std::vector<Row>& rows);
  std::uint32_t form_of(PyObject* tensor, const Words& words);
  bool same_groups(PyObject* groups, pybind11::list& gradients) const;
  bool same_states(PyObject* state);
  bool same_state(const Own& own, const Row* rows) const;
  bool same_tensor(const Row& row) const;
  bool same_gradient(Row& row, PyObject* gradient, bool& moved);
  void fetch(const Row& row) const;

  const TensorReader& reader_;
  const std::vector<PyObject*>& names_;
  std::vector<Py_ssize_t> sizes_;  // of the groups
  std::vector<Given> given_;
  const DictVersions versions_;
  PyObject* state_ = nullptr;
  std::uint64_t state_version_ = 0;
  std::vector<Own> owns_;
  std::vector<Row> rows_, gradients_;
  std::vector<Form> forms_;
  bool valid_ = false, reads_ = false;
};

}  // namespace sfplus
