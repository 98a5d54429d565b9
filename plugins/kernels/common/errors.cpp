#include "common/errors.h"

#include <cstdarg>
#include <cstdio>

namespace mamba {
namespace {

thread_local char last_error[512] = "";

}  // namespace

mamba_status fail(mamba_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace mamba

extern "C" {

int mamba_kernels_version(void) { return MAMBA_KERNELS_VERSION; }

const char* mamba_last_error(void) { return mamba::last_error; }

}  // extern "C"
