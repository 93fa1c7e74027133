// The words of memory in which torch keeps where a tensor is and what it looks like. To compare them is ten times as
// quick as to ask torch, which takes a call for each fact; where each stands is found by looking at tensors of which
// the facts are known, and if it is not found, torch is asked.
#pragma once

#include <cstdint>
#include <vector>

#include "facts.h"

namespace sfplus {

// A copy of the words of one tensor.
struct Words {
  static constexpr int kDims = 5;     // more have their sizes elsewhere
  static constexpr int kStorage = 5;  // the address, who frees it, the device, and the bytes

  std::int64_t ndim, offset;
  std::int64_t sizes[kDims], strides[kDims];
  std::int64_t kind[2];  // dtype, device, layout, whether a change of sign is put off, and marks of torch's
  std::int64_t storage[kStorage];

  // Whether the storage holds all elements of so many bytes.
  bool has_room(std::int64_t itemsize) const {
    std::int64_t last = offset;
    for (std::int64_t i = 0; i < ndim; ++i) {
      if (sizes[i] == 0) return true;
      last += (sizes[i] - 1) * strides[i];
    }
    return storage[0] != 0 && (last + 1) * itemsize <= storage[kStorage - 1];
  }

  bool same_shape(const Words& other) const {
    std::int64_t differ = ndim ^ other.ndim;
    for (std::int64_t i = 0; i < ndim && differ == 0; ++i) differ = sizes[i] ^ other.sizes[i];
    return differ == 0;
  }

  // Then dtype and device are the same. They may be where this says no: a part of these words is left as it was found.
  bool same_kind(const Words& other) const { return ((kind[0] ^ other.kind[0]) | (kind[1] ^ other.kind[1])) == 0; }

  // All but the storage's first three words, and its device, which fills no more than a part of its word.
  bool alike(const Words& other) const {
    std::int64_t differ = (offset ^ other.offset) | (storage[kStorage - 1] ^ other.storage[kStorage - 1]);
    if (differ != 0 || !same_kind(other) || !same_shape(other)) return false;
    for (std::int64_t i = 0; i < ndim; ++i) differ |= strides[i] ^ other.strides[i];
    return differ == 0;
  }
};

class TensorWords {
 public:
  // What is known of a tensor for certain, and where torch's own object for it, and for its storage, is.
  struct Probe {
    Facts facts;
    std::uintptr_t object, storage;
  };

  // False if a fact does not stand in the same place in all of the probes, or if two that differ look alike. Some of
  // them must have room for an element and an offset.
  bool find(const std::vector<Probe>& probes);

  bool known() const { return known_; }

  // A tensor's version as torch says it, and where its object is and that of a view, which has the same count.
  struct Versioned {
    std::int64_t version;
    std::uintptr_t object, view;
  };

  // Where torch counts how often a tensor was written. False if it is not found.
  bool find_versions(const std::vector<Versioned>& probes);

  bool knows_versions() const { return versions_ > 0; }

  // The counter of torch's object at this address; null if it has none.
  std::uint32_t* counter_of(std::uintptr_t object) const {
    const std::uintptr_t at = reinterpret_cast<const std::uintptr_t*>(object)[versions_];
    return at == 0 ? nullptr : reinterpret_cast<std::uint32_t*>(at + kCount);
  }

  // As many numbers as `note` writes of a tensor with so many dimensions.
  static constexpr std::size_t noted(std::int64_t ndim) { return 4 + Words::kStorage + 2 * static_cast<std::size_t>(ndim); }

  // Whether the words are those that were noted, of which there are at least noted(row[0]).
  bool are(std::uintptr_t object, const std::int64_t* row) const {
    const auto* at = reinterpret_cast<const std::int64_t*>(object);
    if (at[storage_] == 0) return false;
    const auto* storage = reinterpret_cast<const std::int64_t*>(at[storage_]) + memory_;
    const std::int64_t ndim = row[0];
    std::int64_t differ = (at[dims_] ^ ndim) | (at[offset_] ^ row[1]) | (at[offset_ + 2] ^ row[2]) |
                          (at[offset_ + 3] ^ row[3]);
    for (int i = 0; i < Words::kStorage; ++i) differ |= storage[i] ^ row[4 + i];
    const std::int64_t *sizes = at + dims_ + 1, *strides = sizes + Words::kDims;
    const std::int64_t *old_sizes = row + 4 + Words::kStorage, *old_strides = old_sizes + ndim;
    for (std::int64_t i = 0; i < ndim; ++i) differ |= (sizes[i] ^ old_sizes[i]) | (strides[i] ^ old_strides[i]);
    return differ == 0;
  }

  // Where torch's object for the storage is, of a tensor that has one.
  std::uintptr_t storage_of(std::uintptr_t object) const {
    return reinterpret_cast<const std::uintptr_t*>(object)[storage_];
  }

  // Whether a tensor's storage is this one, which is not null, and begins with these three words.
  bool is_at(std::uintptr_t object, std::uintptr_t storage, const std::int64_t* first) const {
    if (storage_of(object) != storage) return false;
    const auto* words = reinterpret_cast<const std::int64_t*>(storage) + memory_;
    return ((words[0] ^ first[0]) | (words[1] ^ first[1]) | (words[2] ^ first[2])) == 0;
  }

  // Whether the others of a tensor's words are these; it has a storage.
  bool is_like(std::uintptr_t object, const Words& words) const {
    const auto* at = reinterpret_cast<const std::int64_t*>(object);
    const auto* storage = reinterpret_cast<const std::int64_t*>(at[storage_]) + memory_;
    std::int64_t differ = (at[dims_] ^ words.ndim) | (at[offset_] ^ words.offset) | (at[offset_ + 2] ^ words.kind[0]) |
                          (at[offset_ + 3] ^ words.kind[1]);
    differ |= storage[Words::kStorage - 1] ^ words.storage[Words::kStorage - 1];
    const std::int64_t *sizes = at + dims_ + 1, *strides = sizes + Words::kDims;
    for (std::int64_t i = 0; i < words.ndim; ++i) differ |= (sizes[i] ^ words.sizes[i]) | (strides[i] ^ words.strides[i]);
    return differ == 0;
  }

  static void note(const Words& words, std::vector<std::int64_t>& row) {
    row.insert(row.end(), {words.ndim, words.offset, words.kind[0], words.kind[1]});
    row.insert(row.end(), words.storage, words.storage + Words::kStorage);
    row.insert(row.end(), words.sizes, words.sizes + words.ndim);
    row.insert(row.end(), words.strides, words.strides + words.ndim);
  }

  // False if there are too many dimensions, or no storage, as of a sparse tensor. Of torch's object at this address,
  // which is alive.
  bool read(std::uintptr_t object, Words& words) const {
    const auto* at = reinterpret_cast<const std::int64_t*>(object);
    words.ndim = at[dims_];
    if (static_cast<std::uint64_t>(words.ndim) > Words::kDims || at[storage_] == 0) return false;
    for (std::int64_t i = 0; i < words.ndim; ++i) {
      words.sizes[i] = at[dims_ + 1 + i];
      words.strides[i] = at[dims_ + 1 + Words::kDims + i];
    }
    words.offset = at[offset_];
    words.kind[0] = at[offset_ + 2];
    words.kind[1] = at[offset_ + 3];
    const auto* storage = reinterpret_cast<const std::int64_t*>(at[storage_]) + memory_;
    for (int i = 0; i < Words::kStorage; ++i) words.storage[i] = storage[i];
    return true;
  }

 private:
  static constexpr std::uintptr_t kCount = 16;  // bytes from a counter's beginning, behind what every object of torch's has

  // all counted in words
  int storage_ = 0;  // in a tensor: the address of its storage
  int dims_ = 0;     // the number of dimensions; behind it the sizes and the strides
  int offset_ = 0;   // from the storage's beginning; behind it the number of elements and what `kind` is
  int memory_ = 0;   // in a storage: the address of its memory; four behind it the bytes
  int versions_ = 0;  // in a tensor: the address of its counter of versions
  bool known_ = false;
};

}  // namespace sfplus
