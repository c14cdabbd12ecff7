#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace {

constexpr int SPINS = 2000;  // some ten microseconds: kernels follow each other closely, and waking takes longer
constexpr int MOST = 32;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#ifdef __linux__
// Where the process may run, which is where its first thread may: others may be kept to single cores.
bool allowed(cpu_set_t *set) { return sched_getaffinity(getpid(), sizeof(*set), set) == 0; }
#endif

// The cores this process may use. (MindSpore sets OMP_NUM_THREADS to 1 for itself.)
int cores() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t set;
  if (allowed(&set)) count = CPU_COUNT(&set);
#endif
  return std::min(std::max(count, 1), MOST);
}

// Threads that wait for work. One that wakes up late finds the work closed and does not join it, so nobody waits for
// it: on a machine whose cores have other things to do, this thread does the chunks by itself.
class Pool {
 public:
  Pool() {
    try {
      for (int index = 1; index < cores(); ++index) std::thread(&Pool::serve, this).detach(), ++workers_;
    } catch (const std::system_error &) {  // no more threads to be had: those there are will do
    }
  }

  void run(int64_t chunks, Body body, void *context) {
    // One at a time; MindSpore may run two kernels at once, and the second then has this core alone.
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (workers_ == 0 || !turn.owns_lock()) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body, context_ = context, chunks_ = chunks, next_ = 0, open_ = true;
      published_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load() > 0) wake_.notify_all();
    take(body, context, chunks);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;
    }
    for (int spins = 0; joined_.load(std::memory_order_acquire) > 0; ++spins) {
      spins < SPINS ? pause() : std::this_thread::yield();
    }
  }

 private:
  void take(Body body, void *context, int64_t chunks) {
    for (int64_t chunk = next_.fetch_add(1); chunk < chunks; chunk = next_.fetch_add(1)) body(context, chunk);
  }

  void serve() {
#ifdef __linux__
    cpu_set_t set;  // a new thread may run where the one that made it may
    if (allowed(&set)) pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
#endif
    uint64_t seen = 0;
    for (;;) {
      for (int spins = 0; spins < SPINS && published_.load(std::memory_order_acquire) == seen; ++spins) pause();
      Body body;
      void *context;
      int64_t chunks;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (published_.load() == seen) {
          ++sleeping_;
          wake_.wait(lock, [&] { return published_.load() != seen; });
          --sleeping_;
        }
        seen = published_.load();
        if (!open_) continue;
        body = body_, context = context_, chunks = chunks_;
        ++joined_;
      }
      take(body, context, chunks);
      joined_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> published_{0};
  std::atomic<int> sleeping_{0}, joined_{0};
  std::atomic<int64_t> next_{0};
  Body body_ = nullptr;
  void *context_ = nullptr;
  int64_t chunks_ = 0;
  bool open_ = false;
  int workers_ = 0;
};

}  // namespace

void run_chunks(int64_t chunks, Body body, void *context) {
  if (chunks <= 1) {
    if (chunks == 1) body(context, 0);
    return;
  }
  static Pool *pool = new Pool;  // never taken down: its threads end with the process
  pool->run(chunks, body, context);
}
