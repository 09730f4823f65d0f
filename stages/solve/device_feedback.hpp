// GPTQ and n:m SparseGPT in the memory of a device.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "stages/solve/method.hpp"

namespace selfcal {

/// Why a device's kernels do not take the settings, for people; nothing where they do.
std::optional<std::string> reason_for_host(const MethodSettings& settings);

/// What a solve of so many rows holds on the device beside Hessian and factor.
double device_solve_bytes(int64_t rows, int64_t columns);

/// For settings that the kernels take (else ExitCode::internal) and a context whose device has a
/// solver. Rows are copied to the device a bounded number at a time: its kernels carry them through
/// a block of columns, products of the tensor library, of one shape for every tile of rows, take
/// the block's errors off the columns beyond it and measure the result. Hessian and factor are
/// copied there where they are not yet.
std::unique_ptr<Method> make_device_feedback(const MethodSettings& settings,
                                             const kernels::Context& context);

}  // namespace selfcal
