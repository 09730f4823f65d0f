// What all parts of the HDF5 wrapper share: the file behind a group, and errors of its calls.
#pragma once
#include <string>

#include "storage/hdf5.hpp"

namespace selfcal::hdf5 {

struct Group::Origin {
  FileHandle file;
  std::string path;
  bool parallel = false;
};

/// Ends with the reason that HDF5 gives for its last failure: ExitCode::io where that is a system
/// error, else `code`.
[[noreturn]] void fail_with_reason(const std::string& place, const char* action, ExitCode code);

/// A call's result if it succeeded, else fail_with_reason().
template <class Result>
Result checked(Result result, const std::string& place, const char* action,
               ExitCode code = ExitCode::data) {
  if (result < 0) fail_with_reason(place, action, code);
  return result;
}

/// How an object is made, `kind` H5P_FILE_CREATE, H5P_GROUP_CREATE or H5P_DATASET_CREATE: without
/// the times that HDF5 would keep with it.
PropertyList timeless(hid_t kind);

}  // namespace selfcal::hdf5
