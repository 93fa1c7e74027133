// Compiled once per instruction set: CMakeLists.txt defines SFPLUS_ISA and the flags. Plain loops that the
// compiler vectorises; nothing from the standard library that it might not inline (see config.h).
#include "kernels.h"

#include "../math/dtypes.h"
#include "../math/follow_rule.h"
#include "../math/move_rule.h"
#include "../math/project_rule.h"
#include "../math/update_rule.h"
#include "loops.h"

namespace sfplus {
inline namespace SFPLUS_ISA {
namespace {

template <bool with_e, class State, class Grad>
void reduce_chunk(const ReduceChunk& chunk, double* sums) {
  // Running sums, as many on every instruction set: the bits of the result do not depend on it. Enough to
  // hide the latency of an addition, few enough that three sets of them stay in 16 registers of AVX2.
  constexpr int kLanes = kBlock<State>;
  const Grad* __restrict g = static_cast<const Grad*>(chunk.grad);
  const State* __restrict e = static_cast<const State*>(chunk.displacement);
  const std::int64_t numel = chunk.numel;
  State l1[kLanes] = {}, dot[kLanes] = {}, squares[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= numel; i += kLanes) {
    ask_ahead<State>(g, i);
    if constexpr (with_e) ask_ahead<State>(e, i);
    for (int lane = 0; lane < kLanes; ++lane) {
      const State value = widen<State>(load(g + i + lane));
      l1[lane] += value < 0 ? -value : value;
      if constexpr (with_e) dot[lane] += value * load(e + i + lane);
      squares[lane] += value * value;
    }
  }
  for (int lane = 0; i < numel; ++i, ++lane) {
    const State value = widen<State>(load(g + i));
    l1[lane] += value < 0 ? -value : value;
    if constexpr (with_e) dot[lane] += value * load(e + i);
    squares[lane] += value * value;
  }
  // of a small tensor the other lanes are zero
  const int n_lanes = numel < kLanes ? static_cast<int>(numel) : kLanes;
  for (int lane = 0; lane < n_lanes; ++lane) {
    sums[Sum::GRAD_L1] += static_cast<double>(l1[lane]);
    sums[Sum::GRAD_DOT_E] += static_cast<double>(dot[lane]);
    sums[Sum::GRAD_SQ] += static_cast<double>(squares[lane]);
  }
}

template <Direction direction, class State, class Param, class Grad>
void update_chunk(const UpdateChunk& chunk) {
  constexpr bool kFollows = sizeof(Param) < sizeof(State);  // the parameter is a rounding of y
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction), kHasE = averages(direction);
  const UpdateCoefs<State> coefs = update_coefs<State>(chunk.group_coefs, chunk.tensor_coefs);
  const Grad* __restrict grad = static_cast<const Grad*>(chunk.grad);
  State* __restrict y = static_cast<State*>(chunk.y);
  State* __restrict m = static_cast<State*>(chunk.exp_avg);
  State* __restrict v = static_cast<State*>(chunk.exp_avg_sq);
  State* __restrict e = static_cast<State*>(chunk.displacement);
  Param* __restrict param = static_cast<Param*>(chunk.param);
  const auto element = [=](std::int64_t i) {
    State m_i = 0, v_i = 0, e_i = 0, y_i = load(y + i);
    if constexpr (kHasE) e_i = load(e + i);
    if constexpr (kHasM) m_i = load(m + i);
    if constexpr (kHasV) v_i = load(v + i);
    if constexpr (kFollows) y_i = y_or_written(y_i, load(param + i));
    update_element<direction>(widen<State>(load(grad + i)), m_i, v_i, y_i, e_i, coefs);
    if constexpr (kHasM) store(m + i, m_i);
    if constexpr (kHasV) store(v + i, v_i);
    store(y + i, y_i);
    if constexpr (kHasE) store(e + i, e_i);
    if constexpr (kFollows) store(param + i, narrow<Param>(y_i));
  };
  for_each_element<State>(chunk.numel, element, grad, y, only_if<kHasE>(e), only_if<kHasM>(m), only_if<kHasV>(v),
                          only_if<kFollows>(param));
}

// What the update has just left of a row is in the cache: two sweeps over it, one for the norm of z.
template <bool averages, class State, class Param>
void project_row(const RowToProject& row) {
  constexpr bool kFollows = sizeof(Param) < sizeof(State);
  constexpr int kLanes = kBlock<State>;  // as in reduce_chunk
  const ProjectCoefs<State> coefs = project_coefs<State>(row.group, row.group_coefs);
  State* __restrict y = static_cast<State*>(row.y);
  State* __restrict e = static_cast<State*>(row.displacement);
  Param* __restrict param = static_cast<Param*>(row.param);
  const auto square = [=](std::int64_t i) {
    State e_i = 0;
    if constexpr (averages) e_i = load(e + i);
    const double z = static_cast<double>(z_of<averages>(load(y + i), e_i, coefs));
    return z * z;
  };
  double lanes[kLanes] = {}, squares = 0;
  std::int64_t i = 0;
  for (; i + kLanes <= row.numel; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += square(i + lane);
  }
  for (int lane = 0; i < row.numel; ++i, ++lane) lanes[lane] += square(i);
  for (int lane = 0; lane < kLanes; ++lane) squares += lanes[lane];

  const State excess = static_cast<State>(excess_of_row(squares, row.hyper[Hyper::ROW_NORM]));
  const auto element = [=](std::int64_t i) {
    State y_i = load(y + i), e_i = 0;
    if constexpr (averages) e_i = load(e + i);
    project_element<averages>(y_i, e_i, excess, coefs);
    store(y + i, y_i);
    if constexpr (averages) store(e + i, e_i);
    if constexpr (kFollows) store(param + i, narrow<Param>(y_i));
  };
  for_each_element<State>(row.numel, element);
}

template <int move, class State, class Param>
void move_chunk(const MoveChunk& chunk) {
  constexpr bool kFollows = sizeof(Param) < sizeof(State);
  const MoveCoefs<State> coefs = move_coefs<State>(move, chunk.globals, chunk.hyper, chunk.group_coefs,
                                                   chunk.scalars, chunk.tensor_coefs);
  State* __restrict y = static_cast<State*>(chunk.y);
  State* __restrict e = static_cast<State*>(chunk.displacement);
  Param* __restrict param = static_cast<Param*>(chunk.param);
  const auto element = [=](std::int64_t i) {
    State y_i = load(y + i), e_i = load(e + i);
    if constexpr (kFollows) {
      const Param follower = move_follower<move>(y_i, e_i, load(param + i), coefs);
      store(param + i, follower);
    } else {
      move_element<move>(y_i, e_i, coefs);
    }
    store(y + i, y_i);
    if constexpr (move == Move::EXPOSE_Z || move == Move::ABSORB_Z) store(e + i, e_i);
  };
  for_each_element<State>(chunk.numel, element, y, e, only_if<kFollows>(param));
}

// At any address of a word, and as wide as the processor has them: of wider ones gcc keeps the sums in memory.
#ifdef __GNUC__
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
typedef std::uint32_t Vector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
#else
typedef std::uint32_t Vector;
#endif

// Whole blocks of 64 elements only: what is left at the end is not touched.
std::uint32_t stream(const StreamArray* arrays, int n_arrays, int n_changed, std::int64_t start, std::int64_t numel,
                     std::uint32_t flipped, std::int64_t ahead) {
  constexpr std::int64_t kElements = 2 * kBlock<float>;
  constexpr int kLine = 64, kVectors = kLine / sizeof(Vector);
  static_cast<void>(ahead);  // without prefetching
  const Vector mask = Vector{} + flipped;
  Vector sums[kVectors] = {};
  for (std::int64_t i = start; i + kElements <= start + numel; i += kElements) {
    for (int n = 0; n < n_arrays; ++n) {
      const std::int64_t width = arrays[n].width;
      char* block = static_cast<char*>(arrays[n].at) + i * width;
      char* const end = block + kElements * width;
      const bool is_changed = n < n_changed;
      for (; block < end; block += kLine) {
#ifdef __GNUC__
        __builtin_prefetch(block + (ahead != 0 ? ahead : kAhead * width));
#endif
        Vector* line = reinterpret_cast<Vector*>(block);
        for (int k = 0; k < kVectors; ++k) {
          if (is_changed) {
            line[k] ^= mask;
          } else {
            sums[k] ^= line[k];
          }
        }
      }
    }
  }
  for (int k = 1; k < kVectors; ++k) sums[0] ^= sums[k];
  const std::uint32_t* words = reinterpret_cast<const std::uint32_t*>(sums);
  std::uint32_t sum = 0;
  for (unsigned k = 0; k < sizeof(Vector) / sizeof(std::uint32_t); ++k) sum ^= words[k];
  return sum;
}

#define SFPLUS_REDUCES(with_e, State)                                                    \
  {                                                                                      \
    reduce_chunk<with_e, State, double>, reduce_chunk<with_e, State, float>,             \
        reduce_chunk<with_e, State, bfloat16>, reduce_chunk<with_e, State, float16>      \
  }
#define SFPLUS_UPDATES_BY_GRAD(direction, State, Param)                                  \
  {                                                                                      \
    update_chunk<direction, State, Param, double>, update_chunk<direction, State, Param, float>, \
        update_chunk<direction, State, Param, bfloat16>,                                 \
        update_chunk<direction, State, Param, float16>                                   \
  }
#define SFPLUS_UPDATES(direction)                                                        \
  {                                                                                      \
    SFPLUS_UPDATES_BY_GRAD(direction, double, double),                                   \
        SFPLUS_UPDATES_BY_GRAD(direction, float, float),                                 \
        SFPLUS_UPDATES_BY_GRAD(direction, float, bfloat16),                              \
        SFPLUS_UPDATES_BY_GRAD(direction, float, float16)                                \
  }
#define SFPLUS_PROJECTS(averages)                                                        \
  {                                                                                      \
    project_row<averages, double, double>, project_row<averages, float, float>,          \
        project_row<averages, float, bfloat16>, project_row<averages, float, float16>    \
  }
#define SFPLUS_MOVES(move)                                                               \
  {                                                                                      \
    move_chunk<move, double, double>, move_chunk<move, float, float>,                    \
        move_chunk<move, float, bfloat16>, move_chunk<move, float, float16>              \
  }

}  // namespace

// in the order of Direction, Move and DType
extern const Kernels table;
const Kernels table = {
    {{SFPLUS_REDUCES(false, double), SFPLUS_REDUCES(false, float)},
     {SFPLUS_REDUCES(true, double), SFPLUS_REDUCES(true, float)}},
    {SFPLUS_UPDATES(Direction::ADAM), SFPLUS_UPDATES(Direction::ADAM_NO_MOMENTUM),
     SFPLUS_UPDATES(Direction::SGD), SFPLUS_UPDATES(Direction::PLAIN_ADAM), SFPLUS_UPDATES(Direction::PLAIN_SGD),
     SFPLUS_UPDATES(Direction::PLAIN_MOMENTUM)},
    {SFPLUS_PROJECTS(false), SFPLUS_PROJECTS(true)},
    {SFPLUS_MOVES(Move::TO_X), SFPLUS_MOVES(Move::TO_Y), SFPLUS_MOVES(Move::SHIFT),
     SFPLUS_MOVES(Move::EXPOSE_Z), SFPLUS_MOVES(Move::ABSORB_Z)},
    stream,
};

}  // namespace SFPLUS_ISA
}  // namespace sfplus
