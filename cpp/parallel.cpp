#include "parallel.hpp"

#include <dlfcn.h>

#include <atomic>

namespace batchfree {

namespace {

// libgomp's entry points, looked up instead of linked: the core then uses whichever runtime torch brought, can be
// imported where there is none, and can never load a second one. LLVM's runtime offers the same names.
struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
  const char* path = "";

  explicit operator bool() const { return parallel && thread_num && num_threads; }
};

Runtime find_runtime() {
  for (const char* name : {"libgomp.so.1", "libomp.so", "libiomp5.so", "libomp.dylib", "@rpath/libomp.dylib"}) {
    void* const library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
    if (!library) continue;
    Runtime found;
    found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(library, "GOMP_parallel"));
    found.thread_num = reinterpret_cast<decltype(found.thread_num)>(dlsym(library, "omp_get_thread_num"));
    found.num_threads = reinterpret_cast<decltype(found.num_threads)>(dlsym(library, "omp_get_num_threads"));
    Dl_info info;
    if (found.parallel && dladdr(reinterpret_cast<void*>(found.parallel), &info)) found.path = info.dli_fname;
    if (found) return found;
  }
  return {};
}

// Looked for again until there is one, because torch may be imported after the core.
const Runtime& runtime() {
  static std::atomic<const Runtime*> cached{nullptr};
  if (const Runtime* const known = cached.load(std::memory_order_acquire)) return *known;
  static const Runtime none;
  const Runtime now = find_runtime();
  if (!now) return none;
  static const Runtime found = now;
  cached.store(&found, std::memory_order_release);
  return found;
}

struct Team {
  void (*member)(void*, int, int);
  void* context;
  const Runtime* runtime;
};

}  // namespace

void run_team(int threads, void (*member)(void*, int, int), void* context) {
  const Runtime& current = runtime();
  if (!current) return member(context, 0, 1);
  Team team{member, context, &current};
  current.parallel(
      [](void* erased) {
        const Team& t = *static_cast<const Team*>(erased);
        t.member(t.context, t.runtime->thread_num(), t.runtime->num_threads());
      },
      &team, static_cast<unsigned>(threads), 0);
}

const char* threading_runtime() { return runtime().path; }

}  // namespace batchfree
