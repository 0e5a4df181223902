// A loop over independent tasks on a given number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace slap_fast {

// Calls work(context) on each of at most `threads` threads, this one among them, and returns when all are done.
//
// They are the threads of the OpenMP runtime that the process has loaded, PyTorch's, where there is one: after each of
// its own operations these spin for milliseconds in wait of the next, and threads beside them would share their cores.
void run_on_threads(int threads, void (*work)(void*), void* context);

// Runs task(i, thread) once for each i in [0, tasks), thread in [0, threads). Which thread runs which task is not
// fixed: tasks share no output. Tasks must not throw.
template <typename Task>
void parallel_for(std::int64_t tasks, int threads, const Task& task) {
  struct Loop {
    const Task& task;
    std::int64_t tasks;
    std::atomic<std::int64_t> next;
    std::atomic<int> thread;
  } loop{task, tasks, {0}, {0}};
  const auto work = [](void* context) {
    Loop& loop = *static_cast<Loop*>(context);
    const int thread = loop.thread.fetch_add(1, std::memory_order_relaxed);
    for (std::int64_t i; (i = loop.next.fetch_add(1, std::memory_order_relaxed)) < loop.tasks;) loop.task(i, thread);
  };
  run_on_threads(static_cast<int>(std::min<std::int64_t>(threads, tasks)), work, &loop);
}

}  // namespace slap_fast
