// The element loops over state of 16 bits (Format::HALF), compiled once per instruction set as kernels.cpp is. What an
// element looks like in memory is known to lanes.h alone; what happens to it is the same as in any format.
#include "../math/move_rule.h"
#include "blocks.h"
#include "kernels.h"
#include "project_blocks.h"

namespace sfplus {
inline namespace SFPLUS_ISA {
namespace {

// A copy of the ``count`` elements at the end of an array, with zeros behind them: the loops are over whole blocks, so
// that there is no second loop for the last few elements of a chunk.
struct End {
  unsigned char bytes[kElements * sizeof(double)] = {};

  void* copy(const void* array, std::int64_t start, std::int64_t count, std::size_t width) {
    if (array == nullptr) return nullptr;
    std::memcpy(bytes, static_cast<const char*>(array) + start * width, count * width);
    return bytes;
  }
  void copy_back(void* array, std::int64_t start, std::int64_t count, std::size_t width) const {
    if (array != nullptr) std::memcpy(static_cast<char*>(array) + start * width, bytes, count * width);
  }
};

constexpr std::size_t kStored = 2;  // bytes of a moment, of e, of a half of y

SFPLUS_INLINE std::size_t width_of_gradient(int dtype) {
  return dtype == DType::FLOAT64 ? 8 : dtype == DType::FLOAT32 ? 4 : 2;
}

void reduce_16bit(const ReduceChunk& chunk, int grad_dtype, double* sums) {
  // as many running sums as in kernels.cpp, each of the same elements: zeros behind the end change none of them
  Widest l1[kVectors] = {}, dot[kVectors] = {}, squares[kVectors] = {};
  float buffer[kElements];
  const auto block = [&](const void* grad, const float16* e, std::int64_t i) {
    const float* g = gradient_block(grad, grad_dtype, i, buffer);
    ask_ahead<float>(e, i);
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      const auto value = L::read(g + n * L::kCount);
      l1[n] += L::magnitude(value);
      dot[n] += value * L::read(e + i + n * L::kCount);
      squares[n] += value * value;
    }
  };
  const std::int64_t left = chunk.numel % kElements, whole = chunk.numel - left;
  End grad, e;
  const void* grads = chunk.grad;
  const float16* es = static_cast<const float16*>(chunk.displacement);
  for (std::int64_t i = 0; i < chunk.numel; i += kElements) {
    if (i == whole) {
      grads = grad.copy(grads, whole, left, width_of_gradient(grad_dtype));
      es = static_cast<const float16*>(e.copy(es, whole, left, kStored));
      block(grads, es, 0);
    } else {
      block(grads, es, i);
    }
  }
  for (int lane = 0; lane < kElements; ++lane) {
    sums[Sum::GRAD_L1] += static_cast<double>(L::lane(l1, lane));
    sums[Sum::GRAD_DOT_E] += static_cast<double>(L::lane(dot, lane));
    sums[Sum::GRAD_SQ] += static_cast<double>(L::lane(squares, lane));
  }
}

// Whole blocks. Y is what chunk.y points at: y, or its lower bits where the parameter is the upper half.
template <Direction direction, class Y>
SFPLUS_NOT_INLINE void update_blocks(const UpdateChunk& chunk, int grad_dtype, const Noise& noise) {
  constexpr bool is_split = kIsSplit<Y>;
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction), kHasE = averages(direction);
  const UpdateCoefs<float> coefs = update_coefs<float>(chunk.group_coefs, chunk.tensor_coefs);
  const NoiseKey key = {0, noise.key_b};
  bfloat16* m = static_cast<bfloat16*>(chunk.exp_avg);
  bfloat16* v = static_cast<bfloat16*>(chunk.exp_avg_sq);
  float16* e = static_cast<float16*>(chunk.displacement);
  Y* y = static_cast<Y*>(chunk.y);
  bfloat16* upper = static_cast<bfloat16*>(chunk.param);
  float buffer[kElements];
  auto index = L::indices(noise.index + noise.key_a);
  for (std::int64_t i = 0; i < chunk.numel; i += kElements) {
    const float* g = gradient_block(chunk.grad, grad_dtype, i, buffer);
    if constexpr (kHasM) ask_ahead<float>(m, i);
    if constexpr (kHasV) ask_ahead<float>(v, i);
    if constexpr (kHasE) ask_ahead<float>(e, i);
    ask_ahead<float>(y, i);
    if constexpr (is_split) ask_ahead<float>(upper, i);
    // In stages. A vector's way from memory and back is so long that a processor, which sees some hundred instructions
    // ahead, would hardly meet the next one's; in a stage the vectors of a block are beside each other.
    decltype(index) words[kVectors];
    Widest ms[kVectors], vs[kVectors], ys[kVectors], es[kVectors];
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      words[n] = random_word(key, index + static_cast<std::uint32_t>(n * L::kCount));
    }
    index += static_cast<std::uint32_t>(kElements);
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      const std::int64_t at = i + n * L::kCount;
      Widest m_i = {}, v_i = {}, y_i, e_i = {};
      if constexpr (kHasE) e_i = L::read(e + at);
      if constexpr (kHasM) m_i = L::read(m + at);
      if constexpr (kHasV) v_i = L::read(v + at);
      if constexpr (is_split) {
        y_i = L::read_split(upper + at, y + at);
      } else {
        y_i = L::read(y + at);
      }
      update_element<direction>(L::read(g + n * L::kCount), m_i, v_i, y_i, e_i, coefs);
      ms[n] = m_i;
      vs[n] = v_i;
      ys[n] = y_i;
      es[n] = e_i;
    }
    if constexpr (kHasM && kHasV) {
      L::settle_nans<kVectors>(ms, vs);
    } else if constexpr (kHasV) {
      L::settle_nans<kVectors>(vs);
    } else if constexpr (kHasM) {
      L::settle_nans<kVectors>(ms);
    }
    if constexpr (is_split) L::settle_nans<kVectors>(ys);
    decltype(index) stored[kVectors];
    const auto write_all = [&](void* to, const auto& word_of) {
      SFPLUS_UNROLLED
      for (int n = 0; n < kVectors; ++n) stored[n] = word_of(n);
      L::write_words<kVectors>(to, stored);
    };
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      const std::int64_t at = i + n * L::kCount;
      if constexpr (kHasE) L::write_at_random(e + at, es[n], part_of_float16(words[n]));
      if constexpr (!is_split) L::write(y + at, ys[n]);
    }
    if constexpr (kHasM) write_all(m + i, [&](int n) { return L::nearest(ms[n]); });
    if constexpr (kHasV) write_all(v + i, [&](int n) { return L::at_random(vs[n], words[n]); });
    if constexpr (is_split) {
      write_all(upper + i, [&](int n) { return L::upper_half(ys[n]); });
      write_all(y + i, [&](int n) { return L::lower_half_of(ys[n]); });
    }
  }
}

template <Direction direction, class Y>
void update_16bit(const UpdateChunk& chunk, int grad_dtype, const Noise& noise) {
  const std::int64_t left = chunk.numel % kElements, whole = chunk.numel - left;
  UpdateChunk blocks = chunk;
  blocks.numel = whole;
  if (whole > 0) update_blocks<direction, Y>(blocks, grad_dtype, noise);
  if (left == 0) return;
  End grad, y, m, v, e, param;
  blocks.grad = grad.copy(chunk.grad, whole, left, width_of_gradient(grad_dtype));
  blocks.y = y.copy(chunk.y, whole, left, sizeof(Y));
  blocks.exp_avg = m.copy(chunk.exp_avg, whole, left, kStored);
  blocks.exp_avg_sq = v.copy(chunk.exp_avg_sq, whole, left, kStored);
  blocks.displacement = e.copy(chunk.displacement, whole, left, kStored);
  blocks.param = param.copy(chunk.param, whole, left, kStored);
  blocks.numel = kElements;
  update_blocks<direction, Y>(blocks, grad_dtype,
                                     {noise.key_a, noise.key_b, noise.index + static_cast<std::uint32_t>(whole)});
  y.copy_back(chunk.y, whole, left, sizeof(Y));
  m.copy_back(chunk.exp_avg, whole, left, kStored);
  v.copy_back(chunk.exp_avg_sq, whole, left, kStored);
  e.copy_back(chunk.displacement, whole, left, kStored);
  param.copy_back(chunk.param, whole, left, kStored);
}

template <bool averages, class Y>
void project_16bit(const RowToProject& row, const Noise& noise) {
  const StoredRow<averages, Y> stored(row);
  const float excess = stored.excess(row.numel, row.hyper[Hyper::ROW_NORM]);
  const auto elements = [&](auto zero, std::int64_t at) {
    using V = decltype(zero);
    V y = {}, e = {};
    stored.project(at, excess, y, e);
    if constexpr (averages) {
      const auto index = Lanes<V>::indices(noise.index + noise.key_a + static_cast<std::uint32_t>(at));
      const auto word = turned(random_word(NoiseKey{0, noise.key_b}, index));
      Lanes<V>::write_at_random(stored.e + at, e, part_of_float16(word));
    }
    if constexpr (kIsSplit<Y>) {
      Lanes<V>::write_split(stored.upper + at, stored.y + at, y);
    } else {
      Lanes<V>::write(stored.y + at, y);
    }
  };
  std::int64_t i = 0;
  for (; i + kElements <= row.numel; i += kElements) {
    for_each_vector([&](int at) { elements(Widest{}, i + at); });
  }
  for (; i < row.numel; ++i) elements(0.0f, i);
}

// Whole blocks; e is read and never written. Where y is split TO_X and TO_Y find its upper half beside the parameter,
// which holds x.
template <int move, class Y>
SFPLUS_NOT_INLINE void move_blocks(const MoveChunk& chunk) {
  constexpr bool is_split = kIsSplit<Y>;
  const MoveCoefs<float> coefs = move_coefs<float>(move, chunk.globals, chunk.hyper, chunk.group_coefs,
                                                   chunk.scalars, chunk.tensor_coefs);
  const float16* e = static_cast<const float16*>(chunk.displacement);
  Y* y = static_cast<Y*>(chunk.y);
  bfloat16* param = static_cast<bfloat16*>(chunk.param);
  const bfloat16* upper = static_cast<const bfloat16*>(move == Move::SHIFT ? chunk.param : chunk.y_high);
  for (std::int64_t i = 0; i < chunk.numel; i += kElements) {
    ask_ahead<float>(e, i);
    ask_ahead<float>(y, i);
    if constexpr (is_split) ask_ahead<float>(param, i);
    if constexpr (is_split && move != Move::SHIFT) ask_ahead<float>(upper, i);
    for_each_vector([&](int at_in_block) {
      const std::int64_t at = i + at_in_block;
      const auto by_e = coefs.e_to_y * L::read(e + at);
      if constexpr (!is_split) {
        L::write(y + at, L::read(y + at) + by_e);
      } else if constexpr (move == Move::SHIFT) {
        L::write_split(param + at, y + at, L::read_split(upper + at, y + at) + by_e);
      } else if constexpr (move == Move::TO_X) {
        L::write_nearest(param + at, L::read_split(upper + at, y + at) + by_e);
      } else {
        L::write_y_of_x(param + at, y + at, upper + at, by_e);
      }
    });
  }
}

template <int move, class Y>
void move_16bit(const MoveChunk& chunk) {
  const std::int64_t left = chunk.numel % kElements, whole = chunk.numel - left;
  MoveChunk blocks = chunk;
  blocks.numel = whole;
  if (whole > 0) move_blocks<move, Y>(blocks);
  if (left == 0) return;
  End y, e, param, y_high;
  blocks.y = y.copy(chunk.y, whole, left, sizeof(Y));
  blocks.displacement = e.copy(chunk.displacement, whole, left, kStored);
  blocks.param = param.copy(chunk.param, whole, left, kStored);
  blocks.y_high = y_high.copy(chunk.y_high, whole, left, kStored);
  blocks.numel = kElements;
  move_blocks<move, Y>(blocks);
  y.copy_back(chunk.y, whole, left, sizeof(Y));
  param.copy_back(chunk.param, whole, left, kStored);
}

#define SFPLUS_UPDATES(direction) {update_16bit<direction, float>, update_16bit<direction, std::uint16_t>}

}  // namespace

// in the order of Direction and Move
extern const Kernels16bit table_16bit;
const Kernels16bit table_16bit = {
    reduce_16bit,
    {SFPLUS_UPDATES(Direction::ADAM), SFPLUS_UPDATES(Direction::ADAM_NO_MOMENTUM), SFPLUS_UPDATES(Direction::SGD),
     SFPLUS_UPDATES(Direction::PLAIN_ADAM), {nullptr, update_16bit<Direction::PLAIN_SGD, std::uint16_t>},
     SFPLUS_UPDATES(Direction::PLAIN_MOMENTUM)},
    {{nullptr, project_16bit<false, std::uint16_t>}, {project_16bit<true, float>, project_16bit<true, std::uint16_t>}},
    {{move_16bit<Move::TO_X, float>, move_16bit<Move::TO_X, std::uint16_t>, move_16bit<Move::TO_X, std::uint8_t>},
     {move_16bit<Move::TO_Y, float>, move_16bit<Move::TO_Y, std::uint16_t>, move_16bit<Move::TO_Y, std::uint8_t>},
     {move_16bit<Move::SHIFT, float>, move_16bit<Move::SHIFT, std::uint16_t>},
     {},
     {}},
};

}  // namespace SFPLUS_ISA
}  // namespace sfplus
