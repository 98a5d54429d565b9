#include "writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "error.h"

namespace mamba_run {

void fill_standard_descriptors() {
  for (int descriptor = 0; descriptor < 3; ++descriptor) {
    // The lowest free one is taken. For reading, so that writing to it is an error still.
    if (fcntl(descriptor, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0) return;
  }
}

void flush_output() {
  if (fflush(stdout) || ferror(stdout)) {
    throw Error(std::string("standard output cannot be written (") + std::strerror(errno) + ")");
  }
}

Writer::Writer(Form form) : form_(form), is_terminal_(isatty(STDOUT_FILENO)) {}

void Writer::put(const std::string& text) {
  fwrite(text.data(), 1, text.size(), stdout);
  flush_output();
}

void Writer::write(int64_t token) {
  if (form_ == Form::kNumbers) {
    put((is_first_ ? "" : " ") + std::to_string(token));
    is_first_ = false;
  } else if (form_ == Form::kText && token < 256) {  // vocabularies are padded beyond the bytes
    const char byte = static_cast<char>(token);
    put(is_terminal_ ? text_.push(byte) : std::string(1, byte));
  }
}

void Writer::finish() {
  if (form_ == Form::kSilent) return;
  put(text_.finish() + "\n");
}

}  // namespace mamba_run
