// Host memory that was given out: whether an address lies in it, and who still needs it.
//
// A captured graph copies from and to addresses that it has noted. Those of the host are known to
// stay only where the memory is ours and the graph holds it, so a block that was freed goes with
// its last holder.
#ifndef MAMBA_HOST_MEMORY_H
#define MAMBA_HOST_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace mamba {

// Any thread may call any function at any time.
class HostMemory {
 public:
  using Holder = std::shared_ptr<const void>;

  // release gives a block back, on the thread of whoever was the last to need it.
  explicit HostMemory(void (*release)(void*)) : release_(release) {}
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Takes a block over, which is not null; where std::bad_alloc is thrown, it was released.
  void add(void* begin, size_t size);

  // From now on no range lies in the block that begins here; it is released once nobody holds it.
  // Other addresses, those of blocks that are gone included, do nothing.
  void remove(const void* begin);

  // What keeps the block that has all these bytes; null where no block has.
  Holder hold(const void* begin, size_t size) const;

 private:
  struct Block {
    size_t size;
    Holder memory;
  };

  void (*const release_)(void*);
  mutable std::mutex mutex_;
  std::map<uintptr_t, Block> blocks_;  // by their first address
};

}  // namespace mamba

#endif  // MAMBA_HOST_MEMORY_H
