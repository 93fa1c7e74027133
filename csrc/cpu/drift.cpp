// What a drift monitor adds up: sums over a block of elements that has just been updated, while it is in the cache. Compiled
// once per instruction set as kernels.cpp is, and called only where somebody monitors: the loops of the update stay as
// they are. Storage becomes values here, so that the sums are one loop for all of it.
#include "kernels.h"

#include "../math/dtypes.h"
#include "../math/follow_rule.h"
#include "../math/split_rule.h"
#include "loops.h"

namespace sfplus {
inline namespace SFPLUS_ISA {
namespace {

template <class State, class Stored>
void read_values(const void* from, const void*, std::int64_t numel, void* to) {
  const Stored* __restrict stored = static_cast<const Stored*>(from);
  State* __restrict values = static_cast<State*>(to);
  for (std::int64_t i = 0; i < numel; ++i) values[i] = widen<State>(load(stored + i));
}

// y as the update begins with it, where the parameter is its rounding.
template <class Param>
void read_followed(const void* y, const void* param, std::int64_t numel, void* to) {
  const float* __restrict ys = static_cast<const float*>(y);
  const Param* __restrict params = static_cast<const Param*>(param);
  float* __restrict values = static_cast<float*>(to);
  for (std::int64_t i = 0; i < numel; ++i) values[i] = y_or_written(ys[i], load(params + i));
}

// y of which the parameter is the upper half.
template <class Lower>
void read_split(const void* lower, const void* upper, std::int64_t numel, void* to) {
  const Lower* __restrict lowers = static_cast<const Lower*>(lower);
  const bfloat16* __restrict uppers = static_cast<const bfloat16*>(upper);
  float* __restrict values = static_cast<float*>(to);
  for (std::int64_t i = 0; i < numel; ++i) values[i] = join({load(uppers + i), lower_half(load(lowers + i))});
}

template <class State>
void add_drift(const void* before, const void* after, const void* grad, std::int64_t numel, double* sums) {
  // running sums, as many on every instruction set
  constexpr int kLanes = kBlock<State> / 2;
  const State* __restrict old_ys = static_cast<const State*>(before);
  const State* __restrict ys = static_cast<const State*>(after);
  const State* __restrict gs = static_cast<const State*>(grad);
  State weight[kLanes] = {}, gradient[kLanes] = {}, update[kLanes] = {}, dot[kLanes] = {};
  const auto element = [&](std::int64_t i, int lane) {
    const State moved = ys[i] - old_ys[i];
    weight[lane] += ys[i] * ys[i];
    gradient[lane] += gs[i] * gs[i];
    update[lane] += moved * moved;
    dot[lane] += ys[i] * moved;
  };
  std::int64_t i = 0;
  for (; i + kLanes <= numel; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) element(i + lane, lane);
  }
  for (int lane = 0; i < numel; ++i, ++lane) element(i, lane);
  for (int lane = 0; lane < kLanes; ++lane) {
    sums[Drift::WEIGHT_SQ] += static_cast<double>(weight[lane]);
    sums[Drift::GRAD_SQ] += static_cast<double>(gradient[lane]);
    sums[Drift::UPDATE_SQ] += static_cast<double>(update[lane]);
    sums[Drift::WEIGHT_DOT_UPDATE] += static_cast<double>(dot[lane]);
  }
}

#define SFPLUS_READS(State)                                                          \
  {                                                                                  \
    read_values<State, double>, read_values<State, float>, read_values<State, bfloat16>, \
        read_values<State, float16>                                                  \
  }

}  // namespace

// in the order of Format and DType
extern const KernelsOfDrift table_of_drift;
const KernelsOfDrift table_of_drift = {
    {{read_values<double, double>, read_values<float, float>, read_followed<bfloat16>, read_followed<float16>},
     {nullptr, read_values<float, float>, read_split<std::uint16_t>, nullptr},
     {nullptr, read_values<float, float>, read_split<std::uint8_t>, nullptr}},
    {SFPLUS_READS(double), SFPLUS_READS(float)},
    {add_drift<double>, add_drift<float>},
};

}  // namespace SFPLUS_ISA
}  // namespace sfplus
