#include "launch/gpus.hpp"

#include "base/error.hpp"
#include "base/gpu_module.hpp"
#include "base/log.hpp"
#include "comm/agreement.hpp"
#include "comm/nccl/device_binding.hpp"

namespace selfcal {

void report_gpus(const Communicator& world) {
  if (!any(world, visible_gpus().count > 0)) return;
  try {
    GpuModule module;
    agree(world, [&] {
      module = GpuModule::load();
      if (!module.is_present()) fail(ExitCode::usage, "{}", module.absence());
    });
    const auto calls = module.make<NcclCalls>("selfcal_gpu_nccl_calls");
    int rank = 0;
    for (const DeviceBinding& binding : bind_devices(world, *calls))
      log::info("{}", describe(rank++, binding));
    log::info("the GPU module is loaded; this version of the pipeline still computes on the CPU");
  } catch (const Error& error) {
    log::warn("GPUs are not used: {}", error.what());
  }
}

}  // namespace selfcal
