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

// GOMP_parallel of the loaded OpenMP runtime (libgomp; libomp and libiomp export it too), or null. Null in a forked
// child: the parent's worker threads do not exist there.
GompParallel find_gomp_parallel() {
  static const GompParallel gomp_parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == loading_process ? gomp_parallel : nullptr;
}
#else
GompParallel find_gomp_parallel() { return nullptr; }
#endif

void run_on_std_threads(int threads, void (*work)(void*), void* context) {
  std::vector<std::thread> workers;
  workers.reserve(static_cast<std::size_t>(threads - 1));
  try {
    while (static_cast<int>(workers.size()) < threads - 1) workers.emplace_back(work, context);
  } catch (const std::system_error&) {
    // No more threads available: continue with those already started.
  }
  work(context);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

void run_on_threads(int threads, void (*work)(void*), void* context) {
  if (threads <= 1) return work(context);
  if (const GompParallel gomp_parallel = find_gomp_parallel())
    return gomp_parallel(work, context, static_cast<unsigned>(threads), 0);
  run_on_std_threads(threads, work, context);
}

}  // namespace slap_fast
