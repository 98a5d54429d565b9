// The log of whichever runtime loaded this library.
#pragma once

namespace mamba_trt {

// Keeps the runtime's logger finder (an nvinfer1::ILoggerFinder*) for log_error.
void set_logger_finder(void* finder) noexcept;

// One line about what was refused, as an error: to the runtime's logger, and to standard error
// where there is none.
void log_error(const char* operator_name, const char* layer, const char* reason) noexcept;

}  // namespace mamba_trt
