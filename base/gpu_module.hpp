// The GPU part of the program: a shared library that is loaded where a GPU is visible. What is in
// it is found by name, so that the program itself needs nothing of CUDA.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

namespace selfcal {

/// Raised whenever an interface that the module implements changes.
inline constexpr int gpu_interface = 2;

/// GPUs that the CUDA runtime sees, or why there are none.
struct VisibleGpus {
  int count = 0;
  std::string reason;
};
VisibleGpus visible_gpus();

/// Bytes of the current GPU, or of the first; 0 where there is none. Starts CUDA on it.
uint64_t gpu_memory();

/// Loads the tensor library's CUDA part, which lies beside its CPU part, so that its operations
/// take tensors in the memory of GPUs. To be called before the library is first asked for CUDA: it
/// remembers the answer. ExitCode::config where it or what it needs is missing.
void load_cuda_tensors();

class GpuModule {
 public:
  /// Loads the module if a GPU is visible. What is missing is told by absence().
  static GpuModule load(const std::string& path = default_path());
  /// Loads it whether there is a GPU or not: nothing but a look at what is in it works then.
  static GpuModule open(const std::string& path);

  /// libselfcal_gpu.so beside the program, or in lib beside its folder.
  static std::string default_path();

  bool is_present() const { return absence_.empty(); }
  /// One line: why there is no module.
  const std::string& absence() const { return absence_; }

  /// What `maker`, a function of the module without arguments, makes. ExitCode::internal where the
  /// module is absent or has no such function.
  template <class T>
  std::shared_ptr<T> make(const char* maker) const {
    return std::shared_ptr<T>(reinterpret_cast<T* (*)()>(find(maker))());
  }

 private:
  void* find(const char* name) const;

  std::string absence_;
  void* handle_ = nullptr;  // stays loaded to the end: its objects may outlive this one
};

}  // namespace selfcal
