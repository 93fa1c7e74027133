// The element loops over state of 8 bits (Format::QUARTER), compiled once per instruction set as kernels.cpp is. A block
// of v has one exponent, that of its largest element: so codes are written when all of the block has been computed.
#include "blocks.h"
#include "kernels.h"
#include "lanes_8bit.h"
#include "project_blocks.h"

namespace sfplus {
inline namespace SFPLUS_ISA {
namespace {

using B = ByteLanes<Widest>;
static_assert(kElements == kScaledTogether, "a block has an exponent of its own");

// A block of y of bfloat16 parameters.
SFPLUS_INLINE void write_24_bits(bfloat16* upper, std::uint8_t* lower, Widest (&ys)[kVectors],
                                 const B::Word (&words)[kVectors]) {
  B::settle_nans<kVectors>(ys);
  B::Word halves[kVectors], bytes[kVectors];
  SFPLUS_UNROLLED
  for (int n = 0; n < kVectors; ++n) {
    const B::Word bits = B::raised(ys[n], part_of_y(words[n]));
    halves[n] = B::upper_of_24_bits(bits);
    bytes[n] = B::lower_of_24_bits(bits);
  }
  B::write_words<kVectors>(upper, halves);
  B::write_block(lower, bytes);
}

// Y is what chunk.y points at: y, or its lower bits where the parameter is the upper half.
template <Direction direction, class Y>
void update_8bit(const UpdateChunk& chunk, int grad_dtype, const Noise& noise) {
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction), kHasE = averages(direction);
  UpdateCoefs<float> coefs = update_coefs<float>(chunk.group_coefs, chunk.tensor_coefs);
  if constexpr (kHasM) coefs.beta1 *= kUnitOfM;
  const NoiseKey key = {0, noise.key_b};
  std::uint8_t* m = static_cast<std::uint8_t*>(chunk.exp_avg);
  std::uint8_t* v = static_cast<std::uint8_t*>(chunk.exp_avg_sq);
  float16* e = static_cast<float16*>(chunk.displacement);
  Y* y = static_cast<Y*>(chunk.y);
  bfloat16* upper = static_cast<bfloat16*>(chunk.param);
  float buffer[kElements];
  auto index = B::indices(noise.index + noise.key_a);
  for (std::int64_t i = 0; i < chunk.numel; i += kElements) {
    const float* g = gradient_block(chunk.grad, grad_dtype, i, buffer);
    if constexpr (kHasM) ask_ahead<float>(m, i);
    if constexpr (kHasV) ask_ahead<float>(v, i);
    if constexpr (kHasE) ask_ahead<float>(e, i);
    ask_ahead<float>(y, i);
    if constexpr (kIsSplit<Y>) ask_ahead<float>(upper, i);
    // in stages, as in kernels_16bit.cpp
    Widest units[kVectors], ms[kVectors], vs[kVectors], ys[kVectors], es[kVectors];
    B::Word words[kVectors], positive[kVectors], ranks[kVectors], most = {};
    std::uint32_t lowest = 0;
    if constexpr (kHasV) lowest = 8u * chunk.exponents[i / kElements];
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      words[n] = random_word(key, index + static_cast<std::uint32_t>(n * B::kCount));
    }
    index += static_cast<std::uint32_t>(kElements);
    if constexpr (kHasM) B::read_units(m + i, units);
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      const std::int64_t at = i + n * B::kCount;
      Widest m_i = {}, v_i = {}, y_i, e_i = {};
      if constexpr (kHasE) e_i = B::read(e + at);
      if constexpr (kHasV) {
        const B::Word rank = B::read_ranks(v + at, lowest);
        v_i = B::values(rank);
        if constexpr (kHasM) m_i = units[n] * B::root(rank, v_i);
      }
      if constexpr (kIsSplit<Y>) {
        y_i = B::read_split(upper + at, y + at);
      } else {
        y_i = B::read(y + at);
      }
      update_element<direction>(B::read(g + n * B::kCount), m_i, v_i, y_i, e_i, coefs);
      ms[n] = m_i;
      vs[n] = v_i;
      ys[n] = y_i;
      es[n] = e_i;
    }
    if constexpr (kHasV) {
      SFPLUS_UNROLLED
      for (int n = 0; n < kVectors; ++n) {
        positive[n] = B::positive(vs[n]);
        ranks[n] = B::ranks_at_random(vs[n], words[n]);
        most = B::larger(most, ranks[n]);
      }
      std::uint32_t largest = B::largest(most);
      if (largest > kLargestRank) {  // not all of it is finite
        for (int n = 0; n < kVectors; ++n) ranks[n] = B::at_most(ranks[n], kLargestRank);
        largest = kLargestRank;
      }
      lowest = lowest_rank(largest);
      chunk.exponents[i / kElements] = static_cast<std::uint8_t>(lowest >> 3);
    }
    B::Word bytes[kVectors];
    if constexpr (kIsSplit<Y>) write_24_bits(upper + i, y + i, ys, words);
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      const std::int64_t at = i + n * B::kCount;
      if constexpr (kHasE) B::write_at_random(e + at, es[n], part_of_e(words[n]));
      if constexpr (!kIsSplit<Y>) B::write(y + at, ys[n]);
    }
    if constexpr (kHasV) {
      B::Code codes[kVectors];
      SFPLUS_UNROLLED
      for (int n = 0; n < kVectors; ++n) {
        const B::Word rank = B::at_least(ranks[n], lowest + 1);  // as stored, where v is not 0
        bytes[n] = B::zero_where_zero(positive[n], rank - lowest);
        if constexpr (kHasM) codes[n] = B::codes_of_exp_avg(ms[n], rank, positive[n], words[n]);
      }
      B::write_block(v + i, bytes);
      if constexpr (kHasM) B::write_block(m + i, codes);
    }
  }
}

template <bool averages, class Y>
void project_8bit(const RowToProject& row, const Noise& noise) {
  const StoredRow<averages, Y> stored(row);
  const float excess = stored.excess(row.numel, row.hyper[Hyper::ROW_NORM]);
  const NoiseKey key = {0, noise.key_b};
  auto index = B::indices(noise.index + noise.key_a);
  for (std::int64_t i = 0; i < row.numel; i += kElements) {
    Widest ys[kVectors], es[kVectors] = {};
    B::Word words[kVectors];
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      words[n] = turned(random_word(key, index + static_cast<std::uint32_t>(n * B::kCount)));
      stored.project(i + n * B::kCount, excess, ys[n], es[n]);
    }
    index += static_cast<std::uint32_t>(kElements);
    if constexpr (kIsSplit<Y>) {
      write_24_bits(stored.upper + i, stored.y + i, ys, words);
    }
    SFPLUS_UNROLLED
    for (int n = 0; n < kVectors; ++n) {
      const std::int64_t at = i + n * B::kCount;
      if constexpr (averages) B::write_at_random(stored.e + at, es[n], part_of_e(words[n]));
      if constexpr (!kIsSplit<Y>) B::write(stored.y + at, ys[n]);
    }
  }
}

}  // namespace

// in the order of Direction
extern const Kernels8bit table_8bit;
const Kernels8bit table_8bit = {
    {{update_8bit<Direction::ADAM, float>, update_8bit<Direction::ADAM, std::uint8_t>},
     {update_8bit<Direction::ADAM_NO_MOMENTUM, float>, update_8bit<Direction::ADAM_NO_MOMENTUM, std::uint8_t>},
     {nullptr, update_8bit<Direction::SGD, std::uint8_t>},
     {update_8bit<Direction::PLAIN_ADAM, float>, update_8bit<Direction::PLAIN_ADAM, std::uint8_t>},
     {},
     {}},
    {{nullptr, project_8bit<false, std::uint8_t>}, {project_8bit<true, float>, project_8bit<true, std::uint8_t>}},
};

}  // namespace SFPLUS_ISA
}  // namespace sfplus
