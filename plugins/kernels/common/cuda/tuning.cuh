// What was found by measuring: the sizes at which one kernel gives way to another, a row for each
// GPU architecture, and the tiles and blocks of the kernels, which are compiled alike for every
// architecture (measured on the H100, reasoned for the others). Everything else follows from a
// GPU's properties (gpu.cuh) or from the arithmetic.
#pragma once

#include <cstdint>

namespace mamba {

struct Tuning {
  // The scan splits its length below this many channels of all sequences, or the same number of
  // channels of 16 states: a split computes every exponential twice.
  int64_t split_channels;
  int64_t shortest_part;  // steps of a part of a split length
  int64_t most_parts;
  // A convolution of at least so many numbers gives a thread more channels: at 1 x 1536 channels in
  // bf16 it takes 4.9 us instead of 5.2 at 2048 steps, and would take 3.4 instead of 2.7 at 512.
  int64_t large_convolution;
  // A layer of one row always runs the step's kernels. They are bound by memory for one row and by
  // arithmetic for several: beyond these many rows, or multiplications of all rows, tensor cores,
  // on many rows' path, are quicker.
  int64_t most_step_rows;
  int64_t most_step_products;
  // Up to so many rows the form for many rows does its products in 16 bits itself
  // (skinny_product.cu, which needs sm_90), in kernels that start while those ahead still run.
  // Up to so many multiplications, too, and up to so large a matrix: with 8 rows, layers of Mamba-2
  // of 2048 and 2560 channels take 50.7 and 65.6 us by cuBLAS, and would take 56.7 and 72.1 (H100).
  int64_t most_skinny_rows;
  int64_t most_skinny_products;
  int64_t most_skinny_weights;
  // One token of two to eight sequences of 16 bits takes the step's kernels, of products of up to
  // so many weights: fewer kernels, where each waits more than it reads.
  int64_t most_token_products;
  // One token of more sequences takes two kernels of its own between the large products
  // (mamba_layer/cuda/batch_token.cu, which needs sm_90) up to so many channels of all sequences:
  // with 64 sequences a layer of 1536 channels takes 25.5 us instead of 31.7, of 5120 channels 72.6
  // instead of 76.4, with 128 it would take 98.5 instead of 97.1.
  int64_t most_batch_channels;
  // From so many rows on, and up to so large a matrix, products are batch_product.cu's (sm_90a).
  int64_t fewest_batch_rows;
  int64_t most_batch_weights;
  // Where blocks share out the depth, up to a larger one, and of fewer rows what is too large for
  // skinny_product.cu: a layer of Mamba takes, instead of by cuBLAS (us, H100, fp16): of 8 and 16
  // sequences 32.7 instead of 34.9 and 34.8 instead of 37.2 at 1.4B; of 8, 16, 32 and 64 44.4
  // instead of 46.6, 47.6 instead of 50.1, 52.1 instead of 54.5 and 65.7 instead of 67.7 at 2.8B.
  int64_t most_shared_batch_weights;
};

constexpr Tuning kMeasuredOnH100 = {1024,       128, 64,          int64_t{1} << 21, 4,
                                    64'000'000, 32,  220'000'000, 8'000'000,        8'000'000,
                                    64 * 5120,  17,  9'000'000,   14'000'000};

constexpr Tuning without_clusters(Tuning tuning) {
  tuning.most_skinny_rows = 0;
  tuning.most_batch_channels = 0;
  return tuning;
}

// A row serves its architecture (ten times the compute capability's major number, plus its minor)
// and the later ones up to the next row.
struct TuningRow {
  int architecture;
  Tuning tuning;
};
constexpr TuningRow kTunings[] = {
    {75, without_clusters(kMeasuredOnH100)},  // T4: reasoned, not measured: the same values
    {80, without_clusters(kMeasuredOnH100)},  // A100: reasoned
    {86, without_clusters(kMeasuredOnH100)},  // RTX 30, Jetson Orin, RTX 40: reasoned
    {90, kMeasuredOnH100},                    // H100, H200: measured
    {100, kMeasuredOnH100},                   // B200, Jetson Thor: reasoned
    {120, kMeasuredOnH100},                   // RTX 50: reasoned
};

// The row of an architecture; the first one for older GPUs, and where there is no GPU.
constexpr const Tuning& tuning_of(int architecture) {
  const Tuning* found = &kTunings[0].tuning;
  for (const TuningRow& row : kTunings) {
    if (row.architecture <= architecture) found = &row.tuning;
  }
  return *found;
}

// Values that split a length at least as often, and in as many parts, as those of every row.
constexpr Tuning most_splits() {
  Tuning most = kTunings[0].tuning;
  for (const TuningRow& row : kTunings) {
    const Tuning& own = row.tuning;
    if (own.split_channels > most.split_channels) most.split_channels = own.split_channels;
    if (own.shortest_part < most.shortest_part) most.shortest_part = own.shortest_part;
    if (own.most_parts > most.most_parts) most.most_parts = own.most_parts;
  }
  return most;
}

// --- Tiles of the pipelined scan (scan_pipe.cu), compiled for every architecture -----------------

// kAllStates: d_state, rounded up. kSteps: of a tile. A consumer thread has kChannels channels and
// kStates states of each; a block has at most kWidth channels, and kRoleThreads producer threads
// and as many epilogue threads; kBlocks blocks share a multiprocessor. kAhead: exponentials are
// computed a group of steps ahead of the recurrence.
template <int AllStates, int Steps>
struct PipeTile {
  static constexpr int kAllStates = AllStates, kSteps = Steps;
};

// For 16 states, the quickest of some twenty tried on an H100. Much work a thread takes the fewest
// instructions, little of it makes more warps of few channels.
struct FewChannels : PipeTile<16, 32> {
  static constexpr int kChannels = 1, kStates = 2, kWidth = 16, kRoleThreads = 128, kBlocks = 1;
  static constexpr bool kAhead = true;
};
struct SomeChannels : PipeTile<16, 32> {
  static constexpr int kChannels = 2, kStates = 2, kWidth = 32, kRoleThreads = 128, kBlocks = 1;
  static constexpr bool kAhead = true;
};
struct MoreChannels : PipeTile<16, 32> {
  static constexpr int kChannels = 2, kStates = 2, kWidth = 48, kRoleThreads = 96, kBlocks = 1;
  static constexpr bool kAhead = true;
};
struct ManyChannels : PipeTile<16, 32> {
  static constexpr int kChannels = 2, kStates = 4, kWidth = 32, kRoleThreads = 64, kBlocks = 2;
  static constexpr bool kAhead = false;
};
// Of more states B and C take most of the shared memory, so that tiles are shorter.
struct SomeStates : PipeTile<64, 16> {
  static constexpr int kChannels = 1, kStates = 4, kWidth = 24, kRoleThreads = 128, kBlocks = 1;
  static constexpr bool kAhead = false;
};
struct ManyStates : PipeTile<128, 16> {
  static constexpr int kChannels = 1, kStates = 4, kWidth = 12, kRoleThreads = 128, kBlocks = 1;
  static constexpr bool kAhead = false;
};

// --- Tiles of the scan on tensor cores (scan_mma.cu), compiled for every architecture ------------

// A block has kWidth channels, a consumer warp for each eight of them, kRoleThreads producer
// threads and as many epilogue threads; kBlocks blocks share a multiprocessor.
template <int Width, int Role, int Blocks>
struct MmaTile {
  static constexpr int kAllStates = 16, kSteps = 32, kWidth = Width, kRoleThreads = Role;
  static constexpr int kBlocks = Blocks;
};
using MmaSome = MmaTile<32, 128, 1>;
using MmaMany = MmaTile<32, 64, 2>;

// Up to so many channels for each multiprocessor the pipelined scan stays: at 1 x 1536 channels of
// 65536 steps in fp16 it takes 1502 us instead of 1606 (H100). So it does between MmaSome's and its
// own MoreChannels: at 1 x 5120 of 8192, 508 instead of 522. Their producers and epilogue would
// bound this one, for a thread of theirs has eight channels.
constexpr int64_t kFewestMmaChannels = 24;

// --- Tiles of the scan whose warps do all the work (scan_tile.cu) --------------------------------

// kLanes neighbouring lanes share a channel, each with kStatesAThread of its states, so that
// kAllStates is the largest d_state that fits. A thread has kChannels channels; at least kBlocks
// blocks of kThreads threads are to share a multiprocessor. kSteps: of a tile of 16-bit numbers,
// and a tile of fp32 has half as many.
template <int Lanes>
struct ScanTile {
  static constexpr int kLanes = Lanes, kStatesAThread = 8, kAllStates = Lanes * kStatesAThread;
};
struct TileOf8States : ScanTile<1> {
  static constexpr int kChannels = 1, kSteps = 16, kThreads = 64, kBlocks = 6;
};
struct TileOf16States : ScanTile<2> {
  static constexpr int kChannels = 2, kSteps = 16, kThreads = 64, kBlocks = 7;
};
struct TileOf32States : ScanTile<4> {
  static constexpr int kChannels = 2, kSteps = 16, kThreads = 128, kBlocks = 4;
};
struct TileOf64States : ScanTile<8> {
  static constexpr int kChannels = 2, kSteps = 16, kThreads = 128, kBlocks = 4;
};
struct TileOf128States : ScanTile<16> {
  static constexpr int kChannels = 2, kSteps = 16, kThreads = 256, kBlocks = 2;
};
struct TileOf256States : ScanTile<32> {
  static constexpr int kChannels = 2, kSteps = 8, kThreads = 256, kBlocks = 2;
};

// --- Chunks of the scan of few states (scan_narrow.cu) -------------------------------------------

// A thread has kStates states of one channel, a warp kSteps steps at a time, a block kWarps such
// chunks; kThreads threads are to share a multiprocessor, which bounds their registers. With kAhead
// the numbers of the next tile are fetched while this one is computed.
template <int States, int Steps, int Warps, int Threads, bool Ahead>
struct NarrowChunk {
  static constexpr int kStates = States, kSteps = Steps, kWarps = Warps, kThreads = Threads;
  static constexpr bool kAhead = Ahead;
};
// With one state nothing is fetched ahead, for which 768 threads lack registers: at 64 x 384
// channels of 784 steps in fp16 it would take 66.6 us instead of 55.6 (H200).
using NarrowOf1State = NarrowChunk<1, 8, 4, 768, false>;
using NarrowOf2States = NarrowChunk<2, 8, 8, 512, true>;
using NarrowOf4States = NarrowChunk<4, 8, 4, 512, true>;

// Up to this many channels of all sequences there are so few blocks that each needs more warps, and
// with them longer tiles: at 1 x 1536 channels of 784 steps and one state in fp16 they take 13.8 us
// instead of 34.9 (H200).
constexpr int64_t kFewNarrowChannels = 8192;
using NarrowFewOf1State = NarrowChunk<1, 8, 16, 512, true>;
using NarrowFewOf4States = NarrowChunk<4, 8, 8, 512, true>;

// Up to this many steps times d_state, the scan of few states is quicker than a split length, which
// computes everything twice in three kernels. One sequence of 384 channels in fp16, unsplit and
// split: d_state 1: 43 and 77 us at 3136 steps, 243 and 151 at 16384; d_state 4: 24 and 74 at 784,
// 83 and 78 at 3136 (H200).
constexpr int64_t kNarrowSteps = 6144;

// --- Lanes of a channel in the scan of a few steps (scan_step.cu) --------------------------------

// kLanes neighbouring lanes share a channel, each with kQuads times 4 of its states.
template <int Lanes, int Quads>
struct StepLanes {
  static constexpr int kLanes = Lanes, kQuads = Quads, kAllStates = Lanes * Quads * 4;
};
using StepOf4States = StepLanes<1, 1>;
using StepOf16States = StepLanes<4, 1>;
using StepOf64States = StepLanes<8, 2>;
using StepOf128States = StepLanes<16, 2>;
using StepOf256States = StepLanes<32, 2>;
constexpr int kScanStepThreads = 128;

// A thread of a scan of a few steps has one sequence of a channel of a single one, else
// kSomeStepSequences, and kManyStepSequences from so many threads of one sequence each on.
constexpr int kSomeStepSequences = 2, kManyStepSequences = 4;
constexpr int64_t kManyScanStepThreads = 200'000;

// --- The convolution (conv.cu) -------------------------------------------------------------------

// A thread has kSteps steps of kBytes of neighbouring channels, all of which it loads before it
// computes; at least kBlocks blocks are to share a multiprocessor, which bounds its registers.
template <int Bytes, int Steps, int Blocks>
struct ConvTile {
  static constexpr int kBytes = Bytes, kSteps = Steps, kBlocks = Blocks;
};
using ConvOfStep = ConvTile<8, 1, 8>;
using ConvOfFew = ConvTile<4, 8, 8>;
using ConvOfMany = ConvTile<8, 8, 6>;
using ConvOfAny = ConvTile<0, 16, 4>;  // one channel a thread: any alignment, up to kMaxTaps

// --- The step of state space duality (ssd_step.cu) -----------------------------------------------

// States of at least so many bytes give a thread kSsdStepRows channels of a head instead of one.
constexpr int64_t kLargeSsdState = int64_t{4} << 20;
constexpr int kSsdStepRows = 2, kSsdStepThreads = 256;

// --- State space duality on tensor cores (ssd_mma.cu) --------------------------------------------

// A block has Rows channels of a head, a warp 16 of them; kBlocks blocks are to share a
// multiprocessor, which bounds registers: a thread has States / 2 of them for the state alone.
template <int Rows, int States>
struct SsdMma {
  static constexpr int kRows = Rows, kStates = States, kWarps = Rows / 16, kThreads = kWarps * 32;
  static constexpr int kBlocks = (States <= 64 ? 4 : States <= 128 ? 3 : 2) - (Rows > 64 ? 1 : 0);
};
constexpr int kFewestSsdMmaStates = 32;  // CUDA cores are quicker for fewer

// --- Tiles of state space duality on CUDA cores (ssd_tile.cu) ------------------------------------

// kLanes neighbouring lanes share kRows channels, each with kStatesAThread of their states, so that
// kAllStates is the largest d_state that fits; a block has kBlockRows channels of a head, and at
// least kBlocks blocks are to share a multiprocessor. kSteps: of a tile. Reasoned, not measured.
template <int Lanes, int Rows, int Threads>
struct SsdTile {
  static constexpr int kLanes = Lanes, kStatesAThread = 8, kAllStates = Lanes * kStatesAThread;
  static constexpr int kRows = Rows, kThreads = Threads, kBlockRows = Threads / Lanes * Rows;
};
struct SsdTileOf8States : SsdTile<1, 1, 64> {
  static constexpr int kSteps = 16, kBlocks = 8;
};
struct SsdTileOf16States : SsdTile<2, 1, 128> {
  static constexpr int kSteps = 16, kBlocks = 4;
};
struct SsdTileOf64States : SsdTile<8, 4, 128> {
  static constexpr int kSteps = 16, kBlocks = 4;
};
struct SsdTileOf128States : SsdTile<16, 4, 256> {
  static constexpr int kSteps = 16, kBlocks = 2;
};
struct SsdTileOf256States : SsdTile<32, 4, 256> {
  static constexpr int kSteps = 16, kBlocks = 2;
};

// --- Blocks of a layer's step (layer/cuda, mamba_layer/cuda) -------------------------------------

// A block of a GEMV: the columns of the weights that it owns, and its threads.
struct GemvBlock {
  int columns, threads;
};
constexpr GemvBlock kInProjBlock = {64, 512};
constexpr GemvBlock kXProjBlock = {16, 128};
constexpr GemvBlock kDtProjBlock = {32, 128};
constexpr GemvBlock kOutProjBlock = {16, 512};
constexpr int kGemvRun = 8;  // consecutive rows of the weights that a thread reads at once
// The last kernel's block over codes: half a sector of a row of 4 bits. One row of 8 bits is
// quicker on CUDA cores (2.8B, H100: a layer takes 32.5 us, and 36.9 on tensor cores).
constexpr GemvBlock kPackedOutBlock = {32, 512};
// Codes to weights of T for many rows (widen.cu): columns of a thread, and threads.
constexpr GemvBlock kWidenBlock = {8, 256};
// The first kernel's on tensor cores: threads, and the shared memory that a block of a GPU must be
// able to have. Few columns give three quarters of the multiprocessors a block at most: more such
// blocks are slower than half as many of kInProjBlock's columns (370M, H100: a layer takes 11.6 us
// instead of 9.6). Several rows take many columns, where they leave every multiprocessor one block.
constexpr int kTensorThreads = 256, kLeastTensorShared = 160 * 1024;
constexpr int kFewTensorColumns = 32, kManyTensorColumns = 96;
// Bytes of a block's rings of codes: of one row, and of several, whose x takes shared memory too;
// less where blocks share a multiprocessor; and of the last kernel.
constexpr int kTensorRing = 108 * 1024, kSharedTensorRing = 80 * 1024;
// Of one row of 8 bits whose blocks would share multiprocessors few columns and small rings are
// quicker (2.8B, H100: a layer takes 31.1 us instead of 34.7).
constexpr int kFewSharedTensorRing = 48 * 1024;
// Of one row of 4 bits they have as many columns as give each a multiprocessor, where any do (2.8B,
// H100, last kernel and step of the state as below: 21.0 us instead of 23.4).
constexpr GemvBlock kWideTensorBlock = {80, 320};
constexpr int kWideTensorRing = 117 * 1024;
// Fours of a row that a thread of the norm keeps; many where blocks of few columns share
// multiprocessors, whose layers are wide (2.8B, int8, H100: 29.3 us instead of 29.8).
constexpr int kFewKeptFours = 2, kManyKeptFours = 3;
constexpr int kTensorRowsRing = 88 * 1024, kSharedTensorRowsRing = 40 * 1024;
constexpr int kTensorOutRing = 80 * 1024, kTensorOutRowsRing = 40 * 1024;
// Of one row of 4 bits and no norm fewer threads and small rings leave blocks of the next layer's
// first kernel room beside these (H100: 130M 7.7 us instead of 7.95, 370M 8.7 instead
// of 8.8; 2.8B as the first kernel's wide blocks have it), but not between these depths (1.4B 16.0
// instead of 15.4).
constexpr int kSmallTensorOutRing = 56 * 1024;
constexpr int kMostShallowDepth = 2048, kShallowOutThreads = 256;
constexpr int kLeastDeepDepth = 5120, kDeepOutThreads = 320;
// A head over codes (linear_step.cuh), whose columns are many: a block, and the bytes of its rings.
// 130M, int4, one row, H100: 14.0 us, of 64 columns and 256 threads 17.1; 8 rows 17.6 and 21.6.
constexpr GemvBlock kLinearBlock = {128, 128};
constexpr int kLinearRing = 40 * 1024;
// Of 16 bits on tensor cores (ring_gemv.cuh): threads of a block, and bytes of its rings. Blocks of
// two kernels share a multiprocessor, so that weights are on their way while the kernel ahead runs.
constexpr int kRingThreads = 256, kRingBytes = 80 * 1024;
// One row's first kernel: where few columns leave a quarter of the multiprocessors free, blocks
// have that few, whose weights are all on their way at once (a layer of 130M takes 7.3 us, and 7.5
// with kInProjBlock's; one of 370M, whose blocks would take all of them, 11.1 instead of 9.2).
// Blocks that have a multiprocessor each have larger rings (1.4B: 24.7 us instead of 25.9), and
// else not (2.8B: 38.8 instead of 35.2). All on an H100. Weights in registers were slower than
// either.
constexpr int kFewRingColumns = 32, kFewRingBytes = 64 * 1024, kOwnRingBytes = 96 * 1024;
// Of several rows the first kernel's block has fewer columns, all of which find room in its rings.
constexpr int kSomeRowsInColumns = 32;
// Rows of x of so many bytes, together, ride along with the weights in registers.
constexpr int kMaxEarlyBytes = 4;
constexpr int kSomeStepRows = 4;  // kernels are compiled for 1, so many and kMaxStepRows rows
constexpr int64_t kXProjSplitDepth = 512;  // rows of x_proj that one block reads, at least
// One row of so many blocks' channels, at most, goes to x_proj in the blocks that make them: the
// kernel after adds up their shares.
constexpr int kMostNextShares = 80;
// Of layers of codes, whose blocks may have few columns, twice as many (2.8B, int8, H100: a layer
// takes 29.3 us instead of 30.75).
constexpr int kMostPackedShares = 160;
// Threads of a block of the scan's step of one token; blocks of so many share out the sum of
// x_proj's shares where these are at least so many bytes a row.
constexpr int kStateTokenThreads = 256, kStateCluster = 4;
constexpr int64_t kLargeShares = 24 * 1024;
// Of layers of codes (H100, states read early: 1.4B 14.4 us instead of 15.7 in int4, 19.7 instead
// of 20.8 in int8, of 40 KB; 2.8B 20.9 instead of 21.7 in int4, of 48 KB, but 31.6 instead of 29.5
// in int8, of 120 KB).
constexpr int64_t kLargePackedShares = 64 * 1024;

// --- Products of a few rows on tensor cores (layer/cuda/skinny_product.cu)
// ------------------------

// The depth is cut into 1, 2, 4 or 8 shares, until there are kSkinnyBlocks blocks, or a share has
// fewer rows than kLeastSkinnyShare; no share has more than kMostSkinnyShare.
constexpr int64_t kSkinnyBlocks = 192;
constexpr int kLeastSkinnyShare = 128, kMostSkinnyShare = 1024;
// Up to 8 rows three blocks share a multiprocessor, instead of two, where a matrix has so many
// weights: a layer of Mamba of 1024 channels takes 19.6 us instead of 21.6, one of 768 no less.
constexpr int64_t kLargeSkinnyWeight = 4'000'000;

// --- Products of a batch's rows on Hopper (layer/cuda/batch_product.cu) --------------------------

// A block has kTiles times 64 columns and a ring of kStages times 64 rows of the depth, which the
// blocks of a cluster share out. Few columns are cut into many shares, of as many blocks as find a
// place at once: beyond kFewTiles tiles of 64 clusters of six would wait for others to end. Where
// there are kManyTiles, a block has the whole depth, and no cluster to wait for. A stage has room
// for kRows rows of x.
template <int Tiles, int Stages, int Shares, int Rows = 64>
struct BatchTile {
  static constexpr int kTiles = Tiles, kStages = Stages, kShares = Shares, kRows = Rows;
};
using BatchOfFewColumns = BatchTile<2, 8, 6>;
using BatchOfSomeColumns = BatchTile<2, 8, 4>;
using BatchOfManyColumns = BatchTile<1, 6, 1>;
constexpr int64_t kFewTiles = 32, kManyTiles = 48;
// Of in_proj with the convolution and x_proj (mamba_layer/cuda/batch_in.cu), up to
// kBatchProductRows sequences: deep rings, but for narrow layers, which leave the second kernel's
// blocks, and their states, room beside them; of few sequences and wide layers two tiles, and room
// for few rows. A layer takes, instead of in two kernels (us, H100, fp16): of 64 sequences 20.7
// instead of 24.4 at 130M, 25.5 instead of 28.6 at 370M; of 8 32.8 instead of 37.9 at 1.4B, 47.3
// instead of 49.4 at 2.8B. With room for 64 rows (and rings of six stages) instead of few, a layer
// of 16 sequences takes 37.2 instead of 35.8 at 1.4B and 50.1 instead of 48.8 at 2.8B, one of 8
// 34.9 instead of 33.7 and 46.5 instead of 45.4.
// What lost: x sent to all blocks of a cluster by the copy engine (31.3 at 130M, 39 at 370M, 120
// instead of 72 at 2.8B), the norm in this kernel, too (23.8 at 130M, 27.6 at 370M), and out_proj's
// or in_proj's weights brought into the L2 cache by the kernels ahead (up to 5 us more).
using BatchInDeep = BatchTile<1, 12, 1>;
using BatchInNarrow = BatchTile<1, 8, 1>;
using BatchInFewRows = BatchTile<2, 6, 1, 8>;
using BatchInSomeRows = BatchTile<2, 8, 1, 16>;
constexpr int64_t kWidestNarrowBatchIn = 768;        // of d_model
constexpr int64_t kLeastFewBatchInRowsWidth = 2048;  // of d_model

// --- A batch's token of Mamba (mamba_layer/cuda/batch_token.cu) ----------------------------------

// Blocks of a cluster of its first kernel, which add up their shares of x_proj; a block has 64, 128
// or 256 channels, so that the second kernel has to add up at most so many shares of clusters, or
// twice as many in at most kFewBatchGroups groups of 16 sequences.
constexpr int kBatchCluster = 8, kMostBatchShares = 4, kFewBatchGroups = 2;
// Channels of a block of the second kernel, whose states wait in registers, and blocks that are to
// share a multiprocessor.
template <int Channels, int Blocks>
struct BatchStates {
  static constexpr int kChannels = Channels, kBlocks = Blocks;
};
using BatchStatesOfSome = BatchStates<32, 3>;
using BatchStatesOfMany = BatchStates<64, 2>;

}  // namespace mamba
