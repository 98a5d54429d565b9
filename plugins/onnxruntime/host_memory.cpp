#include "host_memory.h"

#include <utility>

namespace mamba {

void HostMemory::add(void* begin, size_t size) {
  Holder memory(begin, release_);  // which releases it where it throws
  const std::lock_guard<std::mutex> lock(mutex_);
  blocks_.insert_or_assign(reinterpret_cast<uintptr_t>(begin), Block{size, std::move(memory)});
}

void HostMemory::remove(const void* begin) {
  Holder memory;  // goes after the lock: release may take a while
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = blocks_.find(reinterpret_cast<uintptr_t>(begin));
  if (found == blocks_.end()) return;
  memory = std::move(found->second.memory);
  blocks_.erase(found);
}

HostMemory::Holder HostMemory::hold(const void* begin, size_t size) const {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = blocks_.upper_bound(address);
  if (found == blocks_.begin()) return nullptr;
  --found;
  const size_t offset = address - found->first;
  const Block& block = found->second;
  // Without a sum, which might overflow.
  const bool lies_within = offset <= block.size && size <= block.size - offset;
  return lies_within ? block.memory : nullptr;
}

}  // namespace mamba
