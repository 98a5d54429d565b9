#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace mamba_run {
namespace {

Error unreadable(const std::string& path) {
  return Error(path + " cannot be read (" + std::strerror(errno) + ")");
}

}  // namespace

File::File(const std::string& path)
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) throw errno == ENOENT ? Error(path + ": no such file") : unreadable(path);
  struct stat found;
  std::string problem;
  if (fstat(descriptor_, &found)) {
    problem = unreadable(path).what();
  } else if (!S_ISREG(found.st_mode)) {
    problem = path + " is " +
              (S_ISDIR(found.st_mode)    ? "a folder"
               : S_ISFIFO(found.st_mode) ? "a FIFO"
                                         : "a device") +
              ", expected a file";
  }
  if (!problem.empty()) {
    close(descriptor_);  // no destructor runs for what was not constructed
    throw Error(problem);
  }
  size_ = static_cast<uint64_t>(found.st_size);
}

File::~File() { close(descriptor_); }

size_t File::read(void* into, size_t bytes) {
  constexpr size_t kMostAtOnce = size_t{1} << 30;  // Linux reads less than 2 GiB a call
  size_t done = 0;
  while (done < bytes) {
    const ssize_t count =
        ::read(descriptor_, static_cast<char*>(into) + done, std::min(bytes - done, kMostAtOnce));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw unreadable(path_);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

bool is_there(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

std::string read_whole(const std::string& path, size_t most) {
  File file(path);
  const std::string problem = path + " has more than " + std::to_string(most) +
                              " bytes, which is too large for such a file";
  if (file.size() > most) throw Error(problem);
  std::string content, part(size_t{1} << 16, '\0');
  while (const size_t count = file.read(part.data(), part.size())) {
    content.append(part, 0, count);
    if (content.size() > most)
      throw Error(problem);  // it has grown, or is one of those without a size
  }
  return content;
}

std::string read_head(const std::string& path, size_t bytes) {
  std::string content(bytes, '\0');
  content.resize(File(path).read(content.data(), bytes));
  return content;
}

}  // namespace mamba_run
