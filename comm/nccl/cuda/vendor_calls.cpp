// NcclCalls and DeviceMemory by the real libraries. Part of the GPU module. Compiled against NCCL
// 2.28 and CUDA 13; not yet run on a GPU.
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <new>

#include "base/error.hpp"
#include "base/gpu_module.hpp"
#include "comm/device_memory.hpp"
#include "comm/nccl/nccl_calls.hpp"

namespace selfcal {
namespace {

static_assert(sizeof(NcclCalls::UniqueId) == sizeof(ncclUniqueId));

ncclComm_t comm_of(NcclCalls::Handle handle) { return static_cast<ncclComm_t>(handle); }
cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

ncclRedOp_t operation_of(ReduceOp op) {
  return op == ReduceOp::sum ? ncclSum : op == ReduceOp::max ? ncclMax : ncclMin;
}

class VendorCalls : public NcclCalls {
 public:
  std::string error_text() override { return error_; }

  int device_count() override {
    int count = 0;
    return of_cuda(cudaGetDeviceCount(&count)) == Status::success ? count : 0;
  }
  std::string device_name(int device) override {
    cudaDeviceProp properties{};
    return of_cuda(cudaGetDeviceProperties(&properties, device)) == Status::success
               ? properties.name
               : "unknown GPU";
  }
  std::string bus_id(int device) override {
    std::array<char, 32> id{};
    const auto status = cudaDeviceGetPCIBusId(id.data(), int(id.size()), device);
    // Without an address two ranks on one GPU could not be told from two GPUs.
    if (of_cuda(status) != Status::success)
      fail(ExitCode::internal, "GPU {} gives no PCI address: {}", device, error_);
    return id.data();
  }

  Status set_device(int device) override {
    device_ = device;
    return of_cuda(cudaSetDevice(device));
  }
  /// One of the tensor library's, of high priority; it keeps them itself.
  Status create_stream(Stream& stream) override {
    try {
      stream = c10::cuda::getStreamFromPool(true, static_cast<c10::DeviceIndex>(device_)).stream();
      return Status::success;
    } catch (const std::exception& error) {
      error_ = error.what();
      error_.resize(std::min(error_.find('\n'), error_.size()));  // the library adds its stack
      return Status::failed;
    }
  }
  void destroy_stream(Stream) override {}
  Status create_event(Event& event) override {
    cudaEvent_t made = nullptr;
    const Status status = of_cuda(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    event = made;
    return status;
  }
  void destroy_event(Event event) override { of_cuda(cudaEventDestroy(event_of(event))); }
  Status record(Event event, Stream stream) override {
    return of_cuda(cudaEventRecord(event_of(event), stream_of(stream)));
  }
  Status wait(Stream stream, Event event) override {
    return of_cuda(cudaStreamWaitEvent(stream_of(stream), event_of(event)));
  }
  Status query(Event event) override {
    const cudaError_t status = cudaEventQuery(event_of(event));
    if (status != cudaErrorNotReady) return of_cuda(status);
    return Status::in_progress;
  }

  Status unique_id(UniqueId& id) override {
    ncclUniqueId made;
    const Status status = of_nccl(ncclGetUniqueId(&made), nullptr);
    std::memcpy(id.data(), made.internal, id.size());
    return status;
  }
  Status init(Handle& handle, int ranks, const UniqueId& id, int rank) override {
    ncclUniqueId given;
    std::memcpy(given.internal, id.data(), id.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t made = nullptr;
    const Status status =
        of_nccl(ncclCommInitRankConfig(&made, ranks, given, rank, &config), nullptr);
    handle = made;
    return status;
  }
  Status async_error(Handle handle) override {
    ncclResult_t found = ncclSuccess;
    const Status asked = of_nccl(ncclCommGetAsyncError(comm_of(handle), &found), handle);
    return asked == Status::failed ? asked : of_nccl(found, handle);
  }
  Status group_start() override { return of_nccl(ncclGroupStart(), nullptr); }
  Status group_end() override { return of_nccl(ncclGroupEnd(), nullptr); }
  Status send(const void* data, int64_t bytes, int peer, Handle handle, Stream stream) override {
    return of_nccl(
        ncclSend(data, size_t(bytes), ncclUint8, peer, comm_of(handle), stream_of(stream)), handle);
  }
  Status receive(void* data, int64_t bytes, int peer, Handle handle, Stream stream) override {
    return of_nccl(
        ncclRecv(data, size_t(bytes), ncclUint8, peer, comm_of(handle), stream_of(stream)), handle);
  }
  Status broadcast(void* data, int64_t bytes, int root, Handle handle, Stream stream) override {
    return of_nccl(ncclBroadcast(data, data, size_t(bytes), ncclUint8, root, comm_of(handle),
                                 stream_of(stream)),
                   handle);
  }
  Status all_reduce(void* data, int64_t count, Type type, ReduceOp op, Handle handle,
                    Stream stream) override {
    const ncclDataType_t element = type == Type::int64   ? ncclInt64
                                   : type == Type::int32 ? ncclInt32
                                                         : ncclUint8;
    return of_nccl(ncclAllReduce(data, data, size_t(count), element, operation_of(op),
                                 comm_of(handle), stream_of(stream)),
                   handle);
  }
  Status finalize(Handle handle) override {
    return of_nccl(ncclCommFinalize(comm_of(handle)), handle);
  }
  Status destroy(Handle handle) override {
    return of_nccl(ncclCommDestroy(comm_of(handle)), nullptr);
  }
  Status abort(Handle handle) override { return of_nccl(ncclCommAbort(comm_of(handle)), nullptr); }

 private:
  Status of_cuda(cudaError_t status) {
    if (status == cudaSuccess) return Status::success;
    error_ = fmt::format("CUDA: {}", cudaGetErrorString(status));
    cudaGetLastError();  // a later call must not find it again
    return Status::failed;
  }
  Status of_nccl(ncclResult_t status, Handle handle) {
    if (status == ncclSuccess) return Status::success;
    if (status == ncclInProgress) return Status::in_progress;
    const char* detail = ncclGetLastError(comm_of(handle));
    error_ = fmt::format("{}{}{}", ncclGetErrorString(status),
                         detail != nullptr && *detail != '\0' ? ": " : "",
                         detail != nullptr ? detail : "");
    return Status::failed;
  }

  std::string error_ = "no error";
  int device_ = 0;
};

class VendorMemory : public DeviceMemory {
 public:
  void* allocate(int64_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, size_t(std::max<int64_t>(bytes, 1))), "cudaMalloc");
    return memory;
  }
  void release(void* memory) override { cudaFree(memory); }
  void upload(void* memory, const void* host, int64_t bytes) override {
    check(cudaMemcpy(memory, host, size_t(bytes), cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  void download(void* host, const void* memory, int64_t bytes) override {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaMemcpy(host, memory, size_t(bytes), cudaMemcpyDeviceToHost), "cudaMemcpy");
  }
  void* current_stream(int device) override {
    return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
  }

 private:
  static void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess) fail(ExitCode::internal, "{}: {}", call, cudaGetErrorString(status));
  }
};

}  // namespace
}  // namespace selfcal

// What the program finds by name. An object belongs to who asked for it.
extern "C" {
int selfcal_gpu_interface() { return selfcal::gpu_interface; }
selfcal::NcclCalls* selfcal_gpu_nccl_calls() { return new selfcal::VendorCalls; }
selfcal::DeviceMemory* selfcal_gpu_memory() { return new selfcal::VendorMemory; }
}
