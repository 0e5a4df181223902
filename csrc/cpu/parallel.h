// A loop over independent tasks on a given number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace slap_fast {

// Runs task(i, thread) once for each i in [0, tasks), thread in [0, threads). Which thread runs which task is not fixed:
// tasks share no output. Tasks must not throw.
template <typename Task>
void parallel_for(std::int64_t tasks, int threads, const Task& task) {
  std::atomic<std::int64_t> next{0};
  const auto work = [&](int thread) {
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i, thread);
  };
  std::vector<std::thread> helpers;
  const std::int64_t wanted = std::min<std::int64_t>(threads, tasks) - 1;
  helpers.reserve(static_cast<std::size_t>(std::max<std::int64_t>(wanted, 0)));
  try {
    while (static_cast<std::int64_t>(helpers.size()) < wanted)
      helpers.emplace_back(work, static_cast<int>(helpers.size()) + 1);
  } catch (const std::system_error&) {
    // The machine grants no more threads: those that run, and this one, do the work.
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace slap_fast
