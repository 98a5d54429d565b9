// Files that others wrote: regular ones alone, opened without waiting and read to the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mamba_run {

class File {
 public:
  // Throws Error where it is missing, a folder, a FIFO or a device, or may not be read.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  uint64_t size() const { return size_; }

  // Bytes that were read; fewer than asked for at the end of the file alone. Throws Error.
  size_t read(void* into, size_t bytes);

 private:
  std::string path_;
  int descriptor_;
  uint64_t size_ = 0;
};

// False where nothing has this name; true where that cannot be told.
bool is_there(const std::string& path);

// Throws Error, also where the file has more bytes than `most`.
std::string read_whole(const std::string& path, size_t most);

// The first bytes, as many as there are.
std::string read_head(const std::string& path, size_t bytes);

}  // namespace mamba_run
