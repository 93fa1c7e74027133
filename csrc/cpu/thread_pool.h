// Threads that live as long as the process, so that a step starts none.
#pragma once

#include <cstdint>
#include <functional>

namespace sfplus {

// Calls task(i) once for each i in [0, n_tasks), on at most n_threads threads of which the caller is one,
// and returns when all are done. Which thread takes which i is left to chance: a task's result must not
// depend on it. Callers on several threads wait for one another; a forked process gets threads of its own.
void parallel_for(std::int64_t n_tasks, int n_threads, const std::function<void(std::int64_t)>& task);

}  // namespace sfplus
