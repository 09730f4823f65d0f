#include "storage/hdf5_calls.hpp"

#include <algorithm>

namespace selfcal::hdf5 {
namespace {

/// HDF5's own reason: the deepest entry of its error stack, on one line.
std::string reason_of_failure() {
  std::string reason;
  const auto take_first = [](unsigned depth, const H5E_error2_t* entry, void* into) -> herr_t {
    if (depth == 0 && entry->desc != nullptr) *static_cast<std::string*>(into) = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  H5Eclear2(H5E_DEFAULT);
  std::replace_if(
      reason.begin(), reason.end(), [](unsigned char c) { return c < 0x20; }, ' ');
  return reason.empty() ? "HDF5 gives no reason" : reason;
}

/// A reason with a system error number is the disk's fault, else what was read is wrong.
bool is_system_error(const std::string& reason) {
  const size_t at = reason.find("errno = ");
  return at != std::string::npos && reason.compare(at, 9, "errno = 0") != 0;
}

}  // namespace

PropertyList timeless(hid_t kind) {
  PropertyList creation(H5Pcreate(kind));
  H5Pset_obj_track_times(creation.id(), false);
  return creation;
}

void fail_with_reason(const std::string& place, const char* action, ExitCode code) {
  const std::string reason = reason_of_failure();
  fail(is_system_error(reason) ? ExitCode::io : code, "{}: {}: {}", place, action, reason);
}

}  // namespace selfcal::hdf5
