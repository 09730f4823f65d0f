// The TileSolver of the GPU module: tiles go to the device, through the kernels block by block, and
// come back. Compiled, and not yet run on a GPU.
#include <algorithm>

#include "base/error.hpp"
#include "stages/solve/cuda/gptq_kernels.hpp"
#include "stages/solve/cuda/tile_solver.hpp"

namespace selfcal {
namespace {

using by_row::Columns;
using by_row::TileArrays;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    fail(ExitCode::internal, "{} on the GPU: {}", what, cudaGetErrorString(status));
}

/// Memory of the current device; none where the count is 0.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    if (bytes_ > 0) check(cudaMalloc(&data_, bytes_), "allocating");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  void load(const T* host) {
    if (bytes_ > 0) check(cudaMemcpy(data_, host, bytes_, cudaMemcpyHostToDevice), "copying");
  }
  /// Waits for the kernels, and tells how they fared.
  void store(T* host) const {
    if (bytes_ > 0) check(cudaMemcpy(host, data_, bytes_, cudaMemcpyDeviceToHost), "solving");
  }

 private:
  size_t bytes_;
  T* data_ = nullptr;
};

/// The device's copy of an array of the host that may be absent.
class Copied {
 public:
  Copied(float* host, int64_t count) : host_(host), device_(host == nullptr ? 0 : count) {
    if (host != nullptr) device_.load(host);
  }
  float* data() const { return device_.data(); }
  void fetch() const {
    if (host_ != nullptr) device_.store(host_);
  }

 private:
  float* host_;
  DeviceArray<float> device_;
};

class CudaTileSolver : public TileSolver {
 public:
  void solve(const Columns& given, const TileArrays& arrays) override {
    if (given.block > largest_cuda_block)
      fail(ExitCode::config, "block_size is {}, expected up to {} on a GPU", given.block,
           largest_cuda_block);
    if (arrays.tiles == 0) return;
    const int64_t entries = arrays.tiles * given.count * lanes::rows,
                  parameters = arrays.tiles * arrays.groups * lanes::rows;
    DeviceArray<float> upper(given.count * given.count);
    DeviceArray<int32_t> group(given.count);
    DeviceArray<float> errors(arrays.tiles * given.block * lanes::rows);
    upper.load(given.upper);
    group.load(given.group);
    const Copied weight(arrays.weight, entries), codes(arrays.codes, entries),
        kept(arrays.kept, entries), scale(arrays.scale, parameters), zero(arrays.zero, parameters);

    Columns columns = given;
    columns.upper = upper.data();
    columns.group = group.data();
    const TileArrays on_device{arrays.tiles, arrays.groups, weight.data(), codes.data(),
                               kept.data(),  scale.data(),  zero.data(),   errors.data()};
    for (int64_t first = 0; first < columns.count; first += columns.block) {
      const int64_t last = std::min(first + columns.block, columns.count);
      check(by_row::launch_block(columns, on_device, arrays.tiles, first, last, nullptr),
            "starting a block of columns");
      check(by_row::launch_beyond(columns, on_device, arrays.tiles, first, last, nullptr),
            "starting the columns beyond a block");
    }
    for (const Copied* array : {&weight, &codes, &kept, &scale, &zero}) array->fetch();
  }
};

}  // namespace
}  // namespace selfcal

extern "C" selfcal::TileSolver* selfcal_gpu_tile_solver() { return new selfcal::CudaTileSolver; }
