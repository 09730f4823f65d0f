// What decides the last bits of a result on this node.
#pragma once
#include <string>

namespace selfcal::kernels {

/// Instruction sets that the libraries and our kernels choose by, their versions, and the version
/// of our arithmetic. Ranks whose kinds differ cannot share a job: their results would depend on
/// who computed what.
std::string numeric_kind();

/// The version of the arithmetic of library_operations, and of factors and solves on a device.
inline constexpr const char* library_arithmetic = "library operations 2";

}  // namespace selfcal::kernels
