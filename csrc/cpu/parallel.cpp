#include "parallel.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace slap_fast {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

#if defined(__unix__) || defined(__APPLE__)
const pid_t loading_process = getpid();

// The entry of the OpenMP runtime that this process has loaded: GCC's, which Clang's and Intel's offer too. A process
// that was forked has its parent's runtime without its threads.
GompParallel find_gomp_parallel() {
  static const GompParallel gomp_parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == loading_process ? gomp_parallel : nullptr;
}
#else
GompParallel find_gomp_parallel() { return nullptr; }
#endif

void run_on_std_threads(int threads, void (*work)(void*), void* context) {
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<std::size_t>(threads - 1));
  try {
    while (static_cast<int>(helpers.size()) < threads - 1) helpers.emplace_back(work, context);
  } catch (const std::system_error&) {
    // The machine grants no more threads: those that run, and this one, do the work.
  }
  work(context);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

void run_on_threads(int threads, void (*work)(void*), void* context) {
  if (threads <= 1) return work(context);
  if (const GompParallel gomp_parallel = find_gomp_parallel())
    return gomp_parallel(work, context, static_cast<unsigned>(threads), 0);
  run_on_std_threads(threads, work, context);
}

}  // namespace slap_fast
