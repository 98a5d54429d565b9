// Work in phases on the caller's threads: of a phase, the tasks may run in any order and at the
// same time; none begins before those of the phase ahead have ended.
//
// The threads are woken once, for all phases: waking them for each one costs more than a phase of a
// decoded token takes. A thread that finds no task left waits, awake, for those that others have
// begun, and only for those. So the work ends with any number of threads, however late they come,
// and whether the caller's parallel_for runs its tasks at the same time or one after the other.
#pragma once

#include <sched.h>

#include <atomic>

#include "common/cpu/threads.h"

namespace mamba {

class Phases {
 public:
  // context must last until the work has run. work: as Threads counts it.
  void add(size_t tasks, void (*task)(void* context, size_t task), void* context, int64_t work) {
    Phase& phase = phases_[count_++];
    phase.tasks = tasks;
    phase.task = task;
    phase.context = context;
    const size_t takes = static_cast<size_t>(work / kWorthTaking) + 1;
    phase.at_once = (tasks + takes - 1) / takes;
    phase.shares = takes < kMostShares ? takes : kMostShares;
    work_ = work > work_ ? work : work_;
    most_tasks_ = tasks > most_tasks_ ? tasks : most_tasks_;
  }

  // Once.
  void run(const Threads& threads) {
    if (count_ == 1)
      return threads.run(phases_[0].tasks, phases_[0].task, phases_[0].context, work_);
    const auto take_part = [](void* self, size_t) { static_cast<Phases*>(self)->take_part(); };
    const size_t most = most_tasks_ < kMostThreads ? most_tasks_ : kMostThreads;
    threads.run(work_ < Threads::kWorthWaking ? 1 : most, take_part, this, work_);
  }

 private:
  static constexpr int kMostPhases = 16;
  static constexpr size_t kMostShares = 8, kMostThreads = 64;
  // Looks at a phase, some 20 us of them, before the processor is given away.
  static constexpr int kPatience = 256;
  // Work below which a number that goes from core to core, in 200 ns and more, costs too much.
  static constexpr int64_t kWorthTaking = 1 << 13;
  // Where threads begin, in the order in which they come: far from one another.
  static constexpr size_t kFirstShares[kMostShares] = {0, 4, 2, 6, 1, 5, 3, 7};

  // A phase's tasks lie in shares, side by side. A thread goes from share to share, and meets
  // others only near the end: what it writes stays in its core, in a cache line of its own.
  struct Phase {
    size_t tasks;
    void (*task)(void* context, size_t task);
    void* context;
    size_t at_once;  // tasks that a thread takes
    size_t shares;
    struct alignas(64) {
      std::atomic<size_t> taken{0};
    } share[kMostShares];
    alignas(64) std::atomic<size_t> ended{0};  // tasks, of threads that found none left
  };

  // Returns the number of tasks that it did.
  static size_t work_in(Phase& phase, size_t share) {
    const size_t begin = phase.tasks * share / phase.shares;
    const size_t count = phase.tasks * (share + 1) / phase.shares - begin, at_once = phase.at_once;
    std::atomic<size_t>& taken = phase.share[share].taken;
    size_t done = 0;
    if (taken.load(std::memory_order_relaxed) >= count) return done;
    for (size_t next; (next = taken.fetch_add(at_once, std::memory_order_relaxed)) < count;) {
      const size_t end = count - next < at_once ? count : next + at_once;
      done += end - next;
      for (; next < end; ++next) phase.task(phase.context, begin + next);
    }
    return done;
  }

  void take_part() {
    const size_t order = threads_.fetch_add(1, std::memory_order_relaxed) % kMostShares;
    for (int i = 0; i < count_; ++i) {
      Phase& phase = phases_[i];
      const size_t first = kFirstShares[order] * phase.shares / kMostShares;
      size_t done = 0;
      for (size_t n = 0; n < phase.shares; ++n) done += work_in(phase, (first + n) % phase.shares);
      if (done > 0) phase.ended.fetch_add(done, std::memory_order_release);
      for (int looks = 0; phase.ended.load(std::memory_order_acquire) < phase.tasks; ++looks) {
        if (looks < kPatience) {
          relax();
        } else {
          sched_yield();
        }
      }
    }
  }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }

  Phase phases_[kMostPhases];
  int count_ = 0;
  int64_t work_ = 0;
  size_t most_tasks_ = 0;
  alignas(64) std::atomic<size_t> threads_{0};  // that have come
};

}  // namespace mamba
