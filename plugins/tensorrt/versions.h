// Which interfaces a version of TensorRT or TensorRT-RTX has.
#pragma once

#include <cstdint>

namespace mamba_trt {

// TensorRT-RTX counts its own versions, from 1; TensorRT has reached 10.
constexpr bool is_rtx(int32_t major) { return major < 10; }

// TensorRT 11 and TensorRT-RTX 1.5 gave ILogger, ILoggerFinder and others a base class, and dropped
// deprecated members of their engines: virtual tables before and since differ. (TensorRT-RTX 1.4 to
// 1.7: by trial.)
constexpr bool has_versioned_interfaces(int32_t major, int32_t minor) {
  return is_rtx(major) ? major > 1 || minor >= 5 : major >= 11;
}

}  // namespace mamba_trt
