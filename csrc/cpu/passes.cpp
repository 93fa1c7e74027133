#include "passes.h"

#include <algorithm>

#include "../math/eight_bits.h"
#include "../math/random_rounding.h"
#include "../math/update_rule.h"
#include "dispatch.h"
#include "thread_pool.h"

namespace sfplus {
namespace {

// Elements that one thread does in about the time that another takes to wake up.
constexpr std::int64_t kWorthAThread = 1 << 15;

int useful_threads(std::int64_t n_elements, int n_threads) {
  return static_cast<int>(std::min<std::int64_t>(n_threads, 1 + n_elements / kWorthAThread));
}

// Null where there is no such tensor.
template <class T>
T* at(std::int64_t address, std::int64_t byte_offset) {
  return address == 0 ? nullptr : reinterpret_cast<T*>(static_cast<std::intptr_t>(address + byte_offset));
}

std::int64_t width_of(int dtype) {
  return dtype == DType::FLOAT64 ? 8 : dtype == DType::FLOAT32 ? 4 : 2;
}

// Bytes of an element of the parameter, of what Row::Y points at, of a moment and of e.
struct Widths {
  std::int64_t param, y, moment, e;
};

Widths widths_of(int format, int param_dtype) {
  const std::int64_t param = width_of(param_dtype), full = param_dtype == DType::FLOAT64 ? 8 : 4;
  return format == Format::QUARTER ? Widths{param, param == 4 ? 4 : 1, 1, 2}
         : format == Format::HALF  ? Widths{param, param, 2, 2}
                                   : Widths{param, full, full, full};
}

// One chunk of the table: which tensor, where in it, how many elements.
struct Piece {
  std::int64_t row, start, numel;
  const std::int64_t* columns;
  std::int64_t index, n_chunks;  // in the table: its number, and how many of them it is
};

std::int64_t length_of_chunk(const Table& table, const std::int64_t* columns) {
  return table.chunk_size != 0 ? table.chunk_size : columns[Row::ROW_LENGTH];
}

Piece piece_of(const Table& table, std::int64_t index) {
  const std::int64_t* chunk = table.chunks + index * Chunk::WIDTH;
  const std::int64_t* columns = table.rows + chunk[Chunk::ROW] * Row::WIDTH;
  const std::int64_t start = chunk[Chunk::START];
  const std::int64_t numel = std::min(columns[Row::NUMEL] - start, length_of_chunk(table, columns));
  return {chunk[Chunk::ROW], start, numel, columns, index, 1};
}

// Of small tensors each is somewhere else: the memory of the chunk a few places behind this one is asked for.
constexpr std::int64_t kPiecesAhead = 4;

template <class... Columns>
void ask_for(const Table& table, std::int64_t index, std::int64_t end, Columns... columns) {
#ifdef __GNUC__
  if (index >= end) return;
  const std::int64_t row = table.chunks[index * Chunk::WIDTH + Chunk::ROW];
  const std::int64_t* addresses = table.rows + row * Row::WIDTH;
  if (table.gradients != nullptr) __builtin_prefetch(reinterpret_cast<const void*>(table.gradients[row]));
  (__builtin_prefetch(reinterpret_cast<const void*>(addresses[columns])), ...);
#else
  static_cast<void>(table), static_cast<void>(index), static_cast<void>(end), (static_cast<void>(columns), ...);
#endif
}

// run(piece) for the chunks from ``first`` to before ``end``, those of one tensor in one piece: they follow each other in
// memory, and each beginning costs a processor more than its instructions.
template <class Function>
void for_each_piece(const Table& table, std::int64_t first, std::int64_t end, const Function& run) {
  for (std::int64_t index = first; index < end;) {
    Piece piece = piece_of(table, index);
    ask_for(table, index + kPiecesAhead, end, Row::Y, Row::EXP_AVG, Row::EXP_AVG_SQ, Row::DISPLACEMENT);
    const std::int64_t length = length_of_chunk(table, piece.columns);
    while (++index < end && table.chunks[index * Chunk::WIDTH + Chunk::ROW] == piece.row) {
      piece.numel = std::min(piece.numel + length, piece.columns[Row::NUMEL] - piece.start);
      ++piece.n_chunks;
    }
    run(piece);
  }
}

// function(start, numel, noise) for each part of a piece whose elements follow each other in the whole tensor, from element
// ``start`` of this memory on: a row that is projected is one part.
template <class Function>
void for_each_run(const Piece& piece, const Run& run, const Function& function) {
  const NoiseKey key = noise_key(run.settings, run.tensors, piece.columns[Row::SLOT]);
  const std::int64_t length = piece.columns[Row::INDEX_RUN], end = piece.start + piece.numel;
  for (std::int64_t start = piece.start; start < end;) {
    const std::int64_t within = start % length, numel = std::min(length - within, end - start);
    const std::int64_t index = piece.columns[Row::INDEX_START] + start / length * piece.columns[Row::INDEX_STRIDE] + within;
    function(start, numel, Noise{key.a, key.b, static_cast<std::uint32_t>(index)});
    start += numel;
  }
}

// run(rows) for parts of a piece whose chunks are rows: few enough that they stay in the cache.
template <class Function>
void for_each_rows(const Piece& piece, const Function& run) {
  constexpr std::int64_t kTogether = 1 << 12;  // elements
  const std::int64_t length = piece.columns[Row::ROW_LENGTH], together = std::max<std::int64_t>(1, kTogether / length);
  for (std::int64_t done = 0; done < piece.n_chunks; done += together) {
    const std::int64_t rows = std::min(together, piece.n_chunks - done);
    run(Piece{piece.row, piece.start + done * length, rows * length, piece.columns, piece.index + done, rows});
  }
}

// Chunks that follow each other in memory belong to one thread, which begins to fetch the next one while it is
// in this one: so many that threads seldom meet, so few that none waits long for the slowest.
std::int64_t chunks_per_task(std::int64_t n_chunks, int n_threads) {
  return 1 + n_chunks / (64 * n_threads);
}

// The tasks are taken from the last to the first: reduce, which goes the other way, has just left the last
// ones in the cache, and the next forward pass begins with the first ones.
template <class Function>
void for_each_chunk(const Table& table, int n_threads, const Function& function) {
  n_threads = useful_threads(table.n_elements, n_threads);
  const std::int64_t per_task = chunks_per_task(table.n_chunks, n_threads);
  const std::int64_t n_tasks = (table.n_chunks + per_task - 1) / per_task;
  parallel_for(n_tasks, n_threads, [&](std::int64_t task) {
    const std::int64_t first = (n_tasks - 1 - task) * per_task;
    for_each_piece(table, first, std::min(first + per_task, table.n_chunks), function);
  });
}

// update(part) for parts of a piece that are short enough to stay in the nearest cache: there the old y is kept beside the
// new one, and the sums of Drift are formed of both, a slot for each chunk. So monitoring reads no memory again.
template <class Update>
void update_and_add(const Table& table, const Piece& piece, int format, int param_dtype, int grad_dtype,
                    const Widths& widths, const Update& update) {
  constexpr std::int64_t kPart = 1024;  // a multiple of what has one exponent
  alignas(64) double before[kPart], after[kPart], grads[kPart];  // of doubles, or half filled with floats
  const int state_dtype = param_dtype == DType::FLOAT64 ? 0 : 1;
  const KernelsOfDrift& kernels = kernels_of_drift();
  const auto read_y = kernels.read_y[format][param_dtype];
  for (std::int64_t index = piece.index; index < piece.index + piece.n_chunks; ++index) {
    const Piece chunk = piece_of(table, index);
    double* sums = table.drift + index * Drift::WIDTH;
    std::fill(sums, sums + Drift::WIDTH, 0.0);
    for (std::int64_t done = 0; done < chunk.numel; done += kPart) {
      const std::int64_t start = chunk.start + done, numel = std::min(kPart, chunk.numel - done);
      const void* y = at<void>(chunk.columns[Row::Y], start * widths.y);
      const void* param = at<void>(chunk.columns[Row::PARAM], start * widths.param);
      read_y(y, param, numel, before);
      update(Piece{chunk.row, start, numel, chunk.columns, index, 1});
      read_y(y, param, numel, after);
      kernels.read_grad[state_dtype][grad_dtype](
          at<void>(table.gradients[chunk.row], start * width_of(grad_dtype)), nullptr, numel, grads);
      kernels.add[state_dtype](before, after, grads, numel, sums);
    }
  }
}

}  // namespace

void reduce(const Table& table, int format, int param_dtype, int grad_dtype, bool with_e, double* partials,
            std::int64_t n_partials, int n_threads) {
  const Widths widths = widths_of(format, param_dtype);
  const std::int64_t grad = width_of(grad_dtype);
  const int state_dtype = param_dtype == DType::FLOAT64 ? 0 : 1;
  const auto kernel = kernels().reduce[with_e ? 1 : 0][state_dtype][grad_dtype];
  const auto kernel_16bit = with_e && format != Format::FULL ? kernels_16bit().reduce : nullptr;
  n_threads = useful_threads(table.n_elements, n_threads);
  const std::int64_t per_task = chunks_per_task(n_partials, n_threads);
  parallel_for((n_partials + per_task - 1) / per_task, n_threads, [&](std::int64_t task) {
    const std::int64_t first = task * per_task, end = std::min(first + per_task, n_partials);
    std::fill(partials + first * Sum::WIDTH, partials + end * Sum::WIDTH, 0.0);
    for (std::int64_t round = 0; round < table.n_chunks; round += n_partials) {
      for (std::int64_t slot = first; slot < std::min(end, table.n_chunks - round); ++slot) {
        const Piece piece = piece_of(table, round + slot);
        ask_for(table, round + slot + kPiecesAhead, std::min(round + end, table.n_chunks), Row::DISPLACEMENT);
        const ReduceChunk chunk = {at<void>(table.gradients[piece.row], piece.start * grad),
                                   at<void>(piece.columns[Row::DISPLACEMENT], piece.start * widths.e),
                                   piece.numel};
        double* sums = partials + slot * Sum::WIDTH;
        if (kernel_16bit != nullptr) {
          kernel_16bit(chunk, grad_dtype, sums);
        } else {
          kernel(chunk, sums);
        }
      }
    }
  }, true);  // update comes next
}

void update(const Table& table, int format, int param_dtype, int grad_dtype, const Run& run, int n_threads) {
  if (run.globals[Global::SKIP] != 0) return;
  const Widths widths = widths_of(format, param_dtype);
  const std::int64_t grad = width_of(grad_dtype);
  if (table.n_chunks == 0) return;
  const std::int64_t* first = piece_of(table, 0).columns;
  const bool has_m = first[Row::EXP_AVG] != 0, has_v = first[Row::EXP_AVG_SQ] != 0;
  const Direction direction = direction_of(has_m, has_v, first[Row::DISPLACEMENT] != 0);
  const auto chunk_of = [&](const Piece& piece, std::int64_t start, std::int64_t numel) {
    return UpdateChunk{at<void>(table.gradients[piece.row], start * grad),
                       at<void>(piece.columns[Row::Y], start * widths.y),
                       at<void>(piece.columns[Row::EXP_AVG], start * widths.moment),
                       at<void>(piece.columns[Row::EXP_AVG_SQ], start * widths.moment),
                       at<void>(piece.columns[Row::DISPLACEMENT], start * widths.e),
                       at<void>(piece.columns[Row::PARAM], start * widths.param),
                       numel,
                       run.group_coefs + piece.columns[Row::GROUP] * GroupCoef::WIDTH,
                       run.tensor_coefs + piece.columns[Row::SLOT] * TensorCoef::WIDTH,
                       at<std::uint8_t>(piece.columns[Row::EXPONENTS], start / kScaledTogether)};
  };
  const auto run_part = [&](const Piece& piece, const auto& update) {
    if (table.drift == nullptr) {
      update(piece);
    } else {
      update_and_add(table, piece, format, param_dtype, grad_dtype, widths, update);
    }
  };
  const auto kernel = kernels().update[static_cast<int>(direction)][param_dtype][grad_dtype];
  const int is_split = param_dtype == DType::BFLOAT16;
  const auto kernel_of_format = format == Format::HALF      ? kernels_16bit().update[static_cast<int>(direction)][is_split]
                                : format == Format::QUARTER ? kernels_8bit().update[static_cast<int>(direction)][is_split]
                                                            : nullptr;
  const auto update_elements = [&](const Piece& piece) {
    if (format == Format::FULL) {
      kernel(chunk_of(piece, piece.start, piece.numel));
      return;
    }
    for_each_run(piece, run, [&](std::int64_t start, std::int64_t numel, const Noise& noise) {
      kernel_of_format(chunk_of(piece, start, numel), grad_dtype, noise);
    });
  };
  if (table.chunk_size != 0) {
    for_each_chunk(table, n_threads, [&](const Piece& piece) { run_part(piece, update_elements); });
    return;
  }
  const int keeps_e = averages(direction) ? 1 : 0;
  const auto project = kernels().project[keeps_e][param_dtype];
  const auto project_of_format = format == Format::HALF      ? kernels_16bit().project[keeps_e][is_split]
                                 : format == Format::QUARTER ? kernels_8bit().project[keeps_e][is_split]
                                                             : nullptr;
  const auto project_row = [&](const Piece& row) {
    const std::int64_t group = row.columns[Row::GROUP];
    const RowToProject given = {at<void>(row.columns[Row::Y], row.start * widths.y),
                                at<void>(row.columns[Row::DISPLACEMENT], row.start * widths.e),
                                at<void>(row.columns[Row::PARAM], row.start * widths.param), row.numel,
                                run.groups + group * Group::WIDTH, run.hyper + group * Hyper::WIDTH,
                                run.group_coefs + group * GroupCoef::WIDTH};
    if (project_of_format == nullptr) {
      project(given);
      return;
    }
    for_each_run(row, run, [&](std::int64_t, std::int64_t, const Noise& noise) { project_of_format(given, noise); });
  };
  for_each_chunk(table, n_threads, [&](const Piece& piece) {
    const std::int64_t length = piece.columns[Row::ROW_LENGTH];
    for_each_rows(piece, [&](const Piece& rows) {
      run_part(rows, update_elements);
      for (std::int64_t start = rows.start; start < rows.start + rows.numel; start += length) {
        project_row({piece.row, start, length, piece.columns, 0, 1});
      }
    });
  });
}

void interpolate(const Table& table, int format, int param_dtype, const Run& run, int move, int n_threads) {
  const Widths widths = widths_of(format, param_dtype);
  const int bits_beside = param_dtype != DType::BFLOAT16 ? 0 : format == Format::HALF ? 1 : 2;
  const auto kernel = format == Format::FULL ? kernels().interpolate[move][param_dtype]
                                             : kernels_16bit().interpolate[move][bits_beside];
  for_each_chunk(table, n_threads, [&](const Piece& piece) {
    const std::int64_t group = piece.columns[Row::GROUP], slot = piece.columns[Row::SLOT];
    kernel({at<void>(piece.columns[Row::Y], piece.start * widths.y),
            at<void>(piece.columns[Row::DISPLACEMENT], piece.start * widths.e),
            at<void>(piece.columns[Row::PARAM], piece.start * widths.param),
            at<void>(piece.columns[Row::Y_HIGH], piece.start * widths.param), piece.numel, run.globals,
            run.hyper + group * Hyper::WIDTH, run.group_coefs + group * GroupCoef::WIDTH,
            run.tensors + slot * Scalar::WIDTH, run.tensor_coefs + slot * TensorCoef::WIDTH});
  });
}

}  // namespace sfplus
