// The text of the last error of a thread.
#ifndef MAMBA_ERRORS_H
#define MAMBA_ERRORS_H

#include "mamba_kernels.h"

namespace mamba {

// Notes the text, in printf's way, for mamba_last_error and returns status.
mamba_status fail(mamba_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

}  // namespace mamba

#endif  // MAMBA_ERRORS_H
