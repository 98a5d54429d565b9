// The operators on a CPU as parts of a larger work: each checks a call and adds its phases, which
// run later, and then says how they ended. The objects must outlive the run.
#pragma once

#include "common/cpu/kernels.h"
#include "common/cpu/phases.h"

namespace mamba {

class ScanWork {
 public:
  mamba_status add(const mamba_selective_scan_params& params, Phases& phases);
  mamba_status outcome() const;

 private:
  ScanCall call_ = {};
};

class ConvWork {
 public:
  mamba_status add(const mamba_causal_conv1d_params& params, Phases& phases);
  mamba_status outcome() const { return MAMBA_OK; }

 private:
  mamba_causal_conv1d_params params_ = {};
};

class DualWork {
 public:
  DualWork() = default;
  ~DualWork();
  DualWork(const DualWork&) = delete;
  DualWork& operator=(const DualWork&) = delete;

  mamba_status add(const mamba_state_space_dual_params& params, Phases& phases);
  mamba_status outcome() const;

 private:
  DualCall call_ = {};
};

class GatedNormWork {
 public:
  mamba_status add(const mamba_gated_rms_norm_params& params, Phases& phases);
  mamba_status outcome() const { return MAMBA_OK; }

 private:
  mamba_gated_rms_norm_params params_ = {};
};

}  // namespace mamba
