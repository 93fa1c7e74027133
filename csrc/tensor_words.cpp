#include "tensor_words.h"

namespace sfplus {
namespace {

// What is looked through: no release of torch has had a smaller tensor or a smaller storage.
constexpr int kTensor = 22, kStorageObject = 8;

std::int64_t word(std::uintptr_t object, int index) { return reinterpret_cast<const std::int64_t*>(object)[index]; }

// The first place in [first, last) of which `holds(place)` is true for all probes, or -1.
template <class Holds>
int find_place(const std::vector<TensorWords::Probe>& probes, int first, int last, const Holds& holds) {
  for (int place = first; place < last; ++place) {
    bool everywhere = true;
    for (const TensorWords::Probe& probe : probes) everywhere = everywhere && holds(probe, place);
    if (everywhere) return place;
  }
  return -1;
}

}  // namespace

bool TensorWords::find(const std::vector<Probe>& probes) {
  known_ = false;
  if (probes.empty()) return false;
  storage_ = find_place(probes, 1, kTensor, [](const Probe& probe, int place) {
    return word(probe.object, place) == static_cast<std::int64_t>(probe.storage);
  });
  dims_ = find_place(probes, 1, kTensor - 2 * Words::kDims, [](const Probe& probe, int place) {
    const Facts& facts = probe.facts;
    bool all = facts.ndim <= Words::kDims && word(probe.object, place) == facts.ndim;
    for (int i = 0; all && i < facts.ndim; ++i) {
      all = word(probe.object, place + 1 + i) == facts.shape[i] &&
            word(probe.object, place + 1 + Words::kDims + i) == facts.strides[i];
    }
    return all;
  });
  if (storage_ < 0 || dims_ < 0) return false;
  offset_ = find_place(probes, dims_ + 1 + 2 * Words::kDims, kTensor - 3, [](const Probe& probe, int place) {
    return word(probe.object, place) == probe.facts.offset && word(probe.object, place + 1) == probe.facts.numel();
  });
  memory_ = find_place(probes, 1, kStorageObject - Words::kStorage + 1, [](const Probe& probe, int place) {
    return word(probe.storage, place + Words::kStorage - 1) == probe.facts.bytes &&
           (probe.facts.numel() == 0 || probe.facts.offset != 0 || word(probe.storage, place) == probe.facts.data);
  });
  if (offset_ < 0 || memory_ < 0) return false;
  // dtypes and devices stand in marks that are torch's own: they have to differ where these do
  for (const Probe& one : probes) {
    for (const Probe& other : probes) {
      const bool differ = one.facts.dtype != other.facts.dtype || one.facts.device != other.facts.device;
      const bool seen = word(one.object, offset_ + 2) != word(other.object, offset_ + 2) ||
                        word(one.object, offset_ + 3) != word(other.object, offset_ + 3);
      if (differ && !seen) return false;
    }
  }
  known_ = true;
  return true;
}

// An address that a tensor shares with its views and with nobody else is that of its storage or of its counter.
bool TensorWords::find_versions(const std::vector<Versioned>& probes) {
  versions_ = 0;
  if (!known_ || probes.size() < 2) return false;
  for (int place = 1; place < kTensor && versions_ == 0; ++place) {
    bool shared = place != storage_;
    for (const Versioned& probe : probes) {
      const std::int64_t at = word(probe.object, place);
      shared = shared && at != 0 && at % 8 == 0 && at == word(probe.view, place);
      for (const Versioned& other : probes) shared = shared && (&other == &probe || at != word(other.object, place));
    }
    if (shared) versions_ = place;
  }
  if (versions_ == 0) return false;
  for (const Versioned& probe : probes) {
    if (*counter_of(probe.object) != probe.version) versions_ = 0;
    if (versions_ == 0) return false;
  }
  return true;
}

}  // namespace sfplus
