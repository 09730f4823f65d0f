#include "base/gpu_module.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.hpp"
#include "comm/device_memory.hpp"
#include "comm/nccl/nccl_group.hpp"

namespace selfcal {
namespace {

TEST(GpuModule, AbsenceIsOneLine) {
  const GpuModule module = GpuModule::open("no/such/module.so");
  EXPECT_FALSE(module.is_present());
  EXPECT_EQ(module.absence().find("the GPU module was not loaded: no/such/module.so"), 0)
      << module.absence();
  EXPECT_EQ(module.absence().find('\n'), std::string::npos);
  EXPECT_THROW(module.make<NcclCalls>("selfcal_gpu_nccl_calls"), Error);
}

TEST(GpuModule, IsNotLoadedWithoutAGpu) {
  const VisibleGpus visible = visible_gpus();
  if (visible.count > 0) GTEST_SKIP() << visible.count << " GPUs are visible";
  EXPECT_FALSE(visible.reason.empty());
  EXPECT_EQ(GpuModule::load(SELFCAL_GPU_MODULE).absence(), visible.reason);
}

TEST(GpuModule, HasWhatTheProgramLooksFor) {
  if (!std::filesystem::exists(SELFCAL_GPU_MODULE)) GTEST_SKIP() << "the module is not built";
  const GpuModule module = GpuModule::open(SELFCAL_GPU_MODULE);
  ASSERT_TRUE(module.is_present()) << module.absence();
  const auto calls = module.make<NcclCalls>("selfcal_gpu_nccl_calls");
  EXPECT_EQ(calls->device_count(), visible_gpus().count);
  EXPECT_NE(module.make<DeviceMemory>("selfcal_gpu_memory"), nullptr);
  EXPECT_THROW(module.make<NcclCalls>("selfcal_gpu_no_such_thing"), Error);
}

TEST(GpuModule, RealNcclWithoutAGpuIsOneClearLine) {
  if (!std::filesystem::exists(SELFCAL_GPU_MODULE)) GTEST_SKIP() << "the module is not built";
  if (visible_gpus().count > 0) GTEST_SKIP() << "a GPU is visible";
  const std::shared_ptr<NcclCalls> calls =
      GpuModule::open(SELFCAL_GPU_MODULE).make<NcclCalls>("selfcal_gpu_nccl_calls");
  try {
    Communicator::nccl(Communicator::world(), calls, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("GPU 0 gives no PCI address: CUDA: "), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace selfcal
