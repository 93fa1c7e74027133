#include "gradient_words.h"

namespace sfplus {
namespace {

// What is looked through: no release of torch has had smaller ones.
constexpr int kTensor = 22, kMeta = 16;

// The only place in [first, last) of which `holds(place)` is true, or -1.
template <class Holds>
int only_place(int first, int last, const Holds& holds) {
  int found = -1;
  for (int place = first; place < last; ++place) {
    if (!holds(place)) continue;
    if (found >= 0) return -1;
    found = place;
  }
  return found;
}

}  // namespace

bool GradientWords::find(const std::vector<Probe>& probes) {
  python_ = 0;
  std::vector<Probe> with, without;  // a gradient
  for (const Probe& probe : probes) (probe.gradient != 0 ? with : without).push_back(probe);
  if (with.size() < 2 || without.size() < 2) return false;

  // An address that each tensor with a gradient has for itself, and that is 0 in some that never had to do with any.
  meta_ = only_place(1, kTensor, [&](int place) {
    for (const Probe& one : with) {
      const std::uintptr_t at = word(one.object, place);
      if (at == 0 || at % sizeof(at) != 0) return false;
      for (const Probe& other : with) {
        if (&one != &other && word(other.object, place) == at) return false;
      }
    }
    bool strange = false;
    for (const Probe& one : without) strange = strange || word(one.object, place) == 0;
    return strange;
  });
  if (meta_ < 0) return false;

  gradient_ = only_place(1, kMeta, [&](int place) {
    for (const Probe& one : with) {
      if (word(word(one.object, meta_), place) != one.gradient) return false;
    }
    return true;
  });
  if (gradient_ < 0) return false;
  int could = 0;
  for (const Probe& one : without) {
    const std::uintptr_t meta = word(one.object, meta_);
    if (meta == 0) continue;
    if (could++ == 0) none_ = word(meta, gradient_);
    if (word(meta, gradient_) != none_) return false;
  }
  if (could < 2) return false;

  const int python = only_place(1, kTensor, [&](int place) {
    for (const Probe& one : with) {
      if (word(one.gradient, place) != one.python) return false;
    }
    return true;
  });
  if (python < 0) return false;
  python_ = python;
  return true;
}

}  // namespace sfplus
