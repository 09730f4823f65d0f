#include <ATen/ATen.h>

#include "storage/hdf5.hpp"

namespace selfcal::hdf5 {
namespace {

Type small_float(size_t exponent_bits, size_t mantissa_bits, size_t bias) {
  Type type(H5Tcopy(H5T_IEEE_F32LE));
  H5Tset_fields(type.id(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
  H5Tset_size(type.id(), 2);
  H5Tset_ebias(type.id(), bias);
  return type;
}

}  // namespace

Type file_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return Type(H5Tcopy(H5T_IEEE_F64LE));
    case at::kFloat:
      return Type(H5Tcopy(H5T_IEEE_F32LE));
    case at::kHalf:
      return small_float(5, 10, 15);
    case at::kBFloat16:
      return small_float(8, 7, 127);
    case at::kLong:
      return Type(H5Tcopy(H5T_STD_I64LE));
    case at::kInt:
      return Type(H5Tcopy(H5T_STD_I32LE));
    case at::kShort:
      return Type(H5Tcopy(H5T_STD_I16LE));
    case at::kChar:
      return Type(H5Tcopy(H5T_STD_I8LE));
    case at::kByte:
    case at::kBool:
      return Type(H5Tcopy(H5T_STD_U8LE));
    default:
      fail(ExitCode::internal, "no HDF5 type for elements of type {}", c10::toString(dtype));
  }
}

}  // namespace selfcal::hdf5
