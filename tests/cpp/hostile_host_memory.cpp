// The registry of host memory under any order of calls, beside a plain list of what was given out,
// and under threads: ranges of one block alone are held, and a block goes once, with the last who
// needs it.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "host_memory.h"
#include "seeded.h"

namespace {

using mamba::HostMemory;
using seeded::expect;
using seeded::Random;

std::atomic<int64_t> released{0};

void release(void* block) {
  ++released;
  std::free(block);
}

struct Given {
  unsigned char* begin;
  size_t size;
  bool is_removed = false;
  std::vector<HostMemory::Holder> holders = {};
  bool is_live() const { return !is_removed || !holders.empty(); }
};

// Blocks of one piece of memory lie next to each other, as an allocator may give them.
void try_neighbours(Random& random) {
  HostMemory memory([](void*) { ++released; });
  std::vector<unsigned char> whole(3 * 64);
  for (int i = 0; i < 3; ++i) memory.add(whole.data() + 64 * i, 64);
  const size_t begin = random.between(0, 191), size = random.between(0, 192);
  const bool lies_in_one = begin % 64 + size <= 64;
  expect(!memory.hold(whole.data() + begin, size) == !lies_in_one, "a range of neighbours");
  const size_t hostile = static_cast<size_t>(random.hostile_size());
  const bool fits = hostile <= 64 - begin % 64;
  expect(!memory.hold(whole.data() + begin, hostile) == !fits, "a hostile size");
  expect(!memory.hold(whole.data() - 1, 1) && !memory.hold(nullptr, 0), "memory of others");
  expect(!memory.hold(whole.data() + 192, 1), "what follows the last block");
  memory.remove(whole.data() + 65);
  expect(memory.hold(whole.data() + 64, 64) != nullptr, "an address that begins no block");
}

void try_any_order(Random& random) {
  HostMemory memory(release);
  std::vector<Given> given;
  const int64_t before = released;
  for (int64_t step = random.between(1, 60); step > 0; --step) {
    Given* one = given.empty() ? nullptr : &given[random.between(0, int64_t(given.size()) - 1)];
    switch (random.between(0, 4)) {
      case 0: {
        const size_t size = random.between(1, 300);
        auto* begin = static_cast<unsigned char*>(std::malloc(size));
        memory.add(begin, size);
        given.push_back({begin, size});
        break;
      }
      case 1:  // a block of memory that is in use again begins where a removed one did: not removed
               // twice here
        if (!one || one->is_removed) break;
        memory.remove(one->begin);
        one->is_removed = true;
        break;
      case 2:
      case 3: {
        if (!one || !one->is_live()) break;
        const size_t offset = random.between(0, int64_t(one->size));
        const size_t size = random.between(0, int64_t(one->size) + 2);
        auto holder = memory.hold(one->begin + offset, size);
        expect(!holder == (one->is_removed || offset + size > one->size), "a range of a block");
        if (holder) one->holders.push_back(std::move(holder));
        break;
      }
      default:
        if (one && !one->holders.empty()) one->holders.pop_back();
    }
    int64_t gone = 0;
    for (const Given& each : given) {
      gone += !each.is_live();
      if (each.is_live()) std::memset(each.begin, 1, each.size);  // AddressSanitizer looks
    }
    expect(released - before == gone, "a block went too early, too late or twice");
  }
}

// Some hold and read what another gives out and removes.
void try_threads(Random& random) {
  HostMemory memory(release);
  std::atomic<unsigned char*> shared{nullptr};
  std::atomic<bool> is_over{false};
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) {
    readers.emplace_back([&] {
      while (!is_over) {
        const auto holder = memory.hold(shared, 8);
        if (holder) std::memset(const_cast<void*>(holder.get()), 2, 8);
      }
    });
  }
  for (int64_t i = random.between(50, 200); i > 0; --i) {
    auto* block = static_cast<unsigned char*>(std::malloc(64));
    memory.add(block, 64);
    shared = block;
    std::this_thread::yield();
    memory.remove(block);
  }
  is_over = true;
  for (std::thread& one : readers) one.join();
}

}  // namespace

int main(int argc, char** argv) {
  return seeded::run(argc, argv, 2000, [](Random& random, int64_t number) {
    if (number % 500 == 0) return try_threads(random);
    return random.once_in(3) ? try_neighbours(random) : try_any_order(random);
  });
}
