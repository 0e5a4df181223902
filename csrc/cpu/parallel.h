// Parallel loop over independent tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace slap_fast {

// Calls work(context) on at most `threads` threads including the caller, and returns when all calls have returned.
//
// Uses the OpenMP runtime that PyTorch has loaded, if any: its idle threads spin for milliseconds after each operation,
// and a second pool would compete with them for cores.
void run_on_threads(int threads, void (*work)(void*), void* context);

// Calls task(i, thread) once for each i in [0, tasks), thread in [0, threads). Tasks are assigned dynamically: they
// must not share outputs, and must not throw.
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
