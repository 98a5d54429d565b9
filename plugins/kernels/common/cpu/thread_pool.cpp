// By hand: it survives fork (Python's multiprocessing), keeps the caller's floating-point mode, and
// does not depend on which OpenMP PyTorch loaded; OpenMP and TBB do not promise these.
//
// One queue of jobs, each a range of tasks. The caller of a job always works on it, so a job ends
// even where no thread is free; helpers join while tasks are left, and the caller waits for those
// that did.
#include "common/cpu/thread_pool.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

namespace {

constexpr int64_t kMaxThreads = 256;

struct Job {
  Job(void (*body)(void* context, size_t task), void* context, size_t tasks, size_t helpers)
      : body(body), context(context), tasks(tasks), wanted(helpers) {}

  void (*const body)(void* context, size_t task);
  void* const context;
  const size_t tasks;
  size_t wanted;                   // helpers that may still join; guarded by Pool::mutex_
  std::fenv_t float_mode{};        // of the caller: rounding, and flushing of subnormal numbers
  size_t helping = 0;              // helpers at work; guarded by Pool::mutex_
  std::atomic<size_t> next{0};     // first task that nobody took
  std::condition_variable helped;  // helping became 0

  void work() {
    for (size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      body(context, task);
    }
  }
};

class Pool {
 public:
  explicit Pool(pid_t process) : process_(process) {}

  pid_t process() const { return process_; }

  void run(Job& job) {
    const size_t helpers = job.wanted;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      add_threads(helpers);
      jobs_.push_back(&job);
    }
    for (size_t i = 0; i < helpers; ++i) work_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    job.helped.wait(lock, [&job] { return job.helping == 0; });
  }

 private:
  // Guarded by mutex_. With fewer threads than asked for, the work is only slower.
  void add_threads(size_t wanted) {
    if (threads_ >= wanted) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this] { help(); }).detach();
    } catch (const std::exception&) {  // no thread, or no memory for one
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  [[noreturn]] void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      if (--job.wanted == 0) jobs_.pop_front();
      ++job.helping;
      lock.unlock();
      std::fesetenv(&job.float_mode);
      job.work();
      lock.lock();
      if (--job.helping == 0) job.helped.notify_one();
    }
  }

  const pid_t process_;
  std::mutex mutex_;
  std::condition_variable work_;  // jobs_ is not empty
  std::deque<Job*> jobs_;         // those that helpers may join
  size_t threads_ = 0;
};

// The pool of this process. A child of fork has none of its parent's threads, and the parent's lock
// may be held for ever in it, so it gets a new pool. Pools are never destroyed: their threads never
// end.
Pool& pool() {
  static std::atomic<Pool*> current{nullptr};
  const pid_t process = getpid();
  Pool* found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->process() != process) {
    Pool* made = new Pool(process);
    if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;  // another thread was faster; found is its pool
  }
  return *found;
}

}  // namespace

void mamba_thread_pool_parallel_for(void* scheduler, size_t tasks,
                                    void (*body)(void* context, size_t task), void* context) {
  const int64_t asked = scheduler == nullptr ? 1 : *static_cast<const int64_t*>(scheduler);
  const size_t threads = static_cast<size_t>(std::clamp<int64_t>(asked, 1, kMaxThreads));
  const size_t helpers = std::min(threads, tasks) - std::min<size_t>(tasks, 1);
  Job job(body, context, tasks, helpers);
  if (helpers == 0) {
    job.work();
    return;
  }
  std::fegetenv(&job.float_mode);
  try {
    pool().run(job);
  } catch (const std::bad_alloc&) {
    job.work();  // no memory for the pool or its queue: nothing was begun
  }
}
