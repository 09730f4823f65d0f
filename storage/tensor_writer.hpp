// A safetensors file written piece by piece: the header is known from names, dtypes and shapes, the
// data may come later.
#pragma once
#include <string>

#include "storage/tensor_file.hpp"

namespace selfcal {

/// What a file will hold: name -> dtype and shape (offset and bytes are filled in by the writer).
using TensorPlan = std::map<std::string, TensorEntry>;

/// An entry of a plan.
TensorEntry planned(at::ScalarType dtype, std::vector<int64_t> shape);

/// Writes straight to `path`: use it inside write_atomically or in a temporary folder. I/O errors
/// are ExitCode::io.
class TensorWriter {
 public:
  TensorWriter(const fs::path& path, TensorPlan plan,
               const std::map<std::string, std::string>& metadata = {});
  ~TensorWriter();
  TensorWriter(const TensorWriter&) = delete;
  TensorWriter& operator=(const TensorWriter&) = delete;

  /// Writes a planned tensor, once, in any order. Another dtype or shape than planned is
  /// ExitCode::internal.
  void write(const std::string& name, const at::Tensor& tensor);
  /// The next rows (of the first dimension) of a planned tensor, which comes in parts, in order.
  void write_rows(const std::string& name, const at::Tensor& rows);
  /// Syncs and closes; a tensor that was planned but not written is ExitCode::internal.
  void finish();
  uint64_t bytes() const { return data_begin_ + data_bytes_; }

 private:
  TensorPlan::iterator awaited(const std::string& name, const at::Tensor& tensor, bool whole);
  void write_at(uint64_t offset, const void* data, size_t bytes);

  fs::path path_;
  TensorPlan missing_;  // what is still to come: of a tensor that comes in parts, its later rows
  int descriptor_ = -1;
  uint64_t data_begin_ = 0, data_bytes_ = 0;
};

}  // namespace selfcal
