#include "storage/tensor_hash.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "storage/dtype.hpp"

namespace selfcal {

void add_tensor(Hasher& hasher, const std::string& path, const at::Tensor& tensor) {
  hasher.text(path).text(dtype_name(tensor.scalar_type())).number(tensor.dim());
  for (const int64_t size : tensor.sizes()) hasher.number(size);
  const at::Tensor dense = tensor.contiguous();
  if (dense.numel() > 0) hasher.bytes(dense.const_data_ptr(), dense.nbytes());
}

std::string tensor_hash(const at::Tensor& tensor) {
  Hasher hasher;
  add_tensor(hasher, "", tensor);
  return hasher.digest();
}

void expect_hash(const fs::path& path, const std::string& what, const std::string& found,
                 const std::string& expected) {
  if (found != expected)
    fail(ExitCode::data, "{}: damaged: {} found {}, expected {}", path.string(), what, found,
         printable(expected));
}

}  // namespace selfcal
