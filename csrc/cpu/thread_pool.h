// Threads that live as long as the process, so that a step starts none.
#pragma once

#include <cstdint>
#include <functional>

namespace sfplus {

// Calls task(i) once for each i in [0, n_tasks), on at most n_threads threads of which the caller is one,
// and returns when all are done. Which thread takes which i is left to chance: a task's result must not
// depend on it. Callers on several threads wait for one another; a forked process gets threads of its own.
// Where more_follows, the next call comes soon: for half a millisecond the threads do not fall asleep, for to wake
// one costs tens of microseconds, or milliseconds beside threads that wait in loops, as those of OpenMP do.
void parallel_for(std::int64_t n_tasks, int n_threads, const std::function<void(std::int64_t)>& task,
                  bool more_follows = false);

}  // namespace sfplus
