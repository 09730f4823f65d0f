#include "base/gpu_module.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "base/error.hpp"

namespace selfcal {
namespace {

constexpr const char* cuda_runtime = "libcudart.so.13";

template <class Function>
Function* function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

}  // namespace

/// Asks the runtime itself: NCCL hands out ids and loads without a driver too.
VisibleGpus visible_gpus() {
  void* runtime = dlopen(cuda_runtime, RTLD_NOW);
  if (runtime == nullptr) return {0, fmt::format("no CUDA runtime ({})", cuda_runtime)};
  auto* count = function<int(int*)>(runtime, "cudaGetDeviceCount");
  auto* text = function<const char*(int)>(runtime, "cudaGetErrorString");
  if (count == nullptr || text == nullptr)
    return {0, fmt::format("{} is no CUDA runtime", cuda_runtime)};
  int devices = 0;
  if (const int status = count(&devices); status != 0)
    return {0, fmt::format("no GPU is visible ({})", text(status))};
  return {devices, devices > 0 ? "" : "no GPU is visible"};
}

uint64_t gpu_memory() {
  if (visible_gpus().count == 0) return 0;
  auto* ask = function<int(size_t*, size_t*)>(dlopen(cuda_runtime, RTLD_NOW), "cudaMemGetInfo");
  size_t free = 0, total = 0;
  return ask != nullptr && ask(&free, &total) == 0 ? total : 0;
}

void load_cuda_tensors() {
  // The second has the factorisations (cuSOLVER); the library would load it when first asked.
  for (const char* part : {"libtorch_cuda.so", "libtorch_cuda_linalg.so"})
    if (dlopen(part, RTLD_NOW | RTLD_GLOBAL) == nullptr)
      fail(ExitCode::config, "the tensor library's CUDA part was not loaded: {}", dlerror());
}

GpuModule GpuModule::load(const std::string& path) {
  const VisibleGpus visible = visible_gpus();
  if (visible.count > 0) return open(path);
  GpuModule absent;
  absent.absence_ = visible.reason;
  return absent;
}

GpuModule GpuModule::open(const std::string& path) {
  GpuModule module;
  // Global: the tensor library's CUDA part, if it is loaded later, must find the same streams.
  module.handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (module.handle_ == nullptr) {
    module.absence_ = fmt::format("the GPU module was not loaded: {}", dlerror());
    return module;
  }
  auto* interface = function<int()>(module.handle_, "selfcal_gpu_interface");
  if (interface == nullptr || interface() != gpu_interface) {
    module.absence_ = fmt::format("{} is the GPU module of another version", path);
    dlclose(module.handle_);
    module.handle_ = nullptr;
  }
  return module;
}

std::string GpuModule::default_path() {
  std::error_code unknown;
  const auto folder = std::filesystem::read_symlink("/proc/self/exe", unknown).parent_path();
  const auto beside = folder / "libselfcal_gpu.so";
  return std::filesystem::exists(beside, unknown)
             ? beside
             : folder.parent_path() / "lib" / "libselfcal_gpu.so";
}

void* GpuModule::find(const char* name) const {
  if (!is_present()) fail(ExitCode::internal, "{}", absence_);
  void* found = dlsym(handle_, name);
  if (found == nullptr) fail(ExitCode::internal, "the GPU module has no {}", name);
  return found;
}

}  // namespace selfcal
