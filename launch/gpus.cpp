#include "launch/gpus.hpp"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <cstdlib>
#include <span>

#include "base/error.hpp"
#include "base/gpu_module.hpp"
#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "comm/nccl/device_binding.hpp"
#include "comm/nccl/nccl_group.hpp"
#include "stages/kernels/numeric_kind.hpp"

namespace selfcal {
namespace {

/// Products in whole float32 and one order of summation: results depend on the GPU's model and the
/// libraries alone. (The workspace has to be set before cuBLAS starts.)
void fix_arithmetic() {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/1);
  auto& library = at::globalContext();
  library.setAllowTF32CuBLAS(false);
  library.setAllowFP16ReductionCuBLAS(
      /*allow_reduced_precision=*/false, /*allow_splitk=*/false);
  library.setAllowBF16ReductionCuBLAS(
      /*allow_reduced_precision=*/false, /*allow_splitk=*/false);
  library.setDeterministicAlgorithms(true, /*warn_only=*/false);
  library.setDeterministicFillUninitializedMemory(false);
}

/// "13.0.2"
std::string blas_version() {
  auto* property = reinterpret_cast<int (*)(int, int*)>(dlsym(RTLD_DEFAULT, "cublasGetProperty"));
  if (property == nullptr)
    fail(ExitCode::config, "device: cuda: no cuBLAS beside the tensor library");
  int parts[3] = {};
  for (int part = 0; part < 3; ++part) property(part, &parts[part]);
  return fmt::format("{}", fmt::join(parts, "."));
}

RunDevice take_gpu(const Communicator& world) {
  GpuModule module;
  agree(world, [&] {
    if (const VisibleGpus visible = visible_gpus(); visible.count == 0)
      fail(ExitCode::config, "device: cuda: {}", visible.reason);
    load_cuda_tensors();
    module = GpuModule::load();
    if (!module.is_present()) fail(ExitCode::config, "device: cuda: {}", module.absence());
  });
  const auto calls = module.make<NcclCalls>("selfcal_gpu_nccl_calls");
  const auto bindings = bind_devices(world, *calls);
  for (size_t rank = 0; rank < bindings.size(); ++rank)
    log::info("{}", describe(static_cast<int>(rank), bindings[rank]));
  const DeviceBinding& mine = bindings[static_cast<size_t>(world.rank())];
  RunDevice chosen;
  agree(world, [&] {
    if (calls->set_device(mine.device) != NcclCalls::Status::success)
      fail(ExitCode::config, "device: cuda: GPU {}: {}", mine.device, calls->error_text());
    fix_arithmetic();
    const auto solver = module.make<SolveKernels>(cuda_solve_kernels);
    chosen = {
        solver,
        {at::Device(at::kCUDA, static_cast<at::DeviceIndex>(mine.device)),
         &kernels::library_operations, solver.get()},
        fmt::format("{}; {}; cuBLAS {}", kernels::library_arithmetic, mine.name, blas_version()),
        gpu_memory()};
  });
  auto memory = static_cast<int64_t>(chosen.memory);
  world.all_reduce(std::span(&memory, 1), ReduceOp::min);
  chosen.memory = static_cast<uint64_t>(memory);
  NcclOptions options;
  options.device = mine.device;
  options.peers_alive = [] { return true; };  // the watchdog ends what is silent
  chosen.ranks = Communicator::nccl(world, calls, options);
  return chosen;
}

}  // namespace

RunDevice choose_device(const Communicator& world, DeviceChoice wanted) {
  if (wanted == DeviceChoice::cuda) return take_gpu(world);
  const int gpus = visible_gpus().count;
  if (wanted == DeviceChoice::cpu) {
    if (gpus > 0) log::info("GPUs stand idle: `device: cuda` would use them");
    return {};
  }
  if (any(world, gpus == 0)) return {};
  try {
    return take_gpu(world);
  } catch (const Error& error) {
    log::warn("GPUs are not used: {}", error.what());
    return {};
  }
}

}  // namespace selfcal
