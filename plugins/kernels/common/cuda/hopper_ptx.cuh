// Instructions of Hopper (sm_90a) that CUDA C++ has no names for, one function each: barriers in
// shared memory, the copy engine (TMA), matrix fragments to and from shared memory, and the order
// of launches. Addresses are of shared memory, in bytes. The products (wgmma) are in
// hopper_wgmma.cuh. Reference: the PTX ISA, sections 9.7.9 and 9.7.13.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace mamba {
namespace hopper {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- mbarrier: a phase ends when all arrivals and all announced bytes have come ------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers known to the copy engine; a __syncthreads has to follow.
__device__ __forceinline__ void barriers_are_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces bytes that the copy engine will bring.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of this parity; a barrier's first phase has parity 0.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra passed;\n"
      "bra again;\n"
      "passed:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// --- TMA: one box of a tensor of four dimensions, zeros where it lies outside --------------------

__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                         int i0, int i1, int i2, int i3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
      : "memory");
}

// Stores a box, without what lies outside of the tensor, as a group of its own.
__device__ __forceinline__ void tma_store(const CUtensorMap* map, uint32_t from, int i0, int i1,
                                          int i2, int i3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(from), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
      : "memory");
}

// Until at most Count of this thread's stores still read shared memory.
template <int Count>
__device__ __forceinline__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Count) : "memory");
}

__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Brings bytes, a multiple of 16, into the L2 cache.
__device__ __forceinline__ void prefetch(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
}

// Brings a line into the first-level cache.
__device__ __forceinline__ void prefetch_to_l1(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

// What this thread wrote to shared memory, the copy engine and wgmma see after the next barrier.
__device__ __forceinline__ void publish_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Warpgroups ----------------------------------------------------------------------------------

// Barrier of one warpgroup; 0 is __syncthreads' own.
__device__ __forceinline__ void warpgroup_sync(int barrier) {
  asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

// Registers of a thread from here on. All warps of a warpgroup have to say so, and what all
// warpgroups ask for has to fit what the block was launched with: else it waits forever.
template <int Count>
__device__ __forceinline__ void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

// --- Fragments: four matrices of 8 x 8 numbers of 16 bits, a row an address of one lane ----------

__device__ __forceinline__ void load_transposed(uint32_t row, uint32_t (&f)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(row)
               : "memory");
}

__device__ __forceinline__ void store_fragments(uint32_t row, uint32_t f0, uint32_t f1, uint32_t f2,
                                                uint32_t f3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(f0), "r"(f1), "r"(f2), "r"(f3)
               : "memory");
}

__device__ __forceinline__ void store_transposed(uint32_t row, uint32_t f0, uint32_t f1,
                                                 uint32_t f2, uint32_t f3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(f0), "r"(f1), "r"(f2), "r"(f3)
               : "memory");
}

__device__ __forceinline__ float load_float(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ float2 load_floats(uint32_t address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(address)
               : "memory");
  return value;
}

// --- Programmatic dependent launch ---------------------------------------------------------------

// The next launch of the stream may start its blocks.
__device__ __forceinline__ void let_next_launch_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Until the launch before this one has ended and its writes are seen.
__device__ __forceinline__ void wait_for_previous_launch() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace hopper
}  // namespace mamba
