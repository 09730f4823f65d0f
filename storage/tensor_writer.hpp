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

/// Writes straight to `path`: use it inside write_atomically or in a temporary folder. Several
/// processes may write one file, each some of its tensors or rows. I/O errors are ExitCode::io.
class TensorWriter {
 public:
  enum class Header { write, is_there };

  /// Makes the file, or opens one that was made with its header from the same plan and metadata.
  TensorWriter(const fs::path& path, TensorPlan plan,
               const std::map<std::string, std::string>& metadata = {},
               Header header = Header::write);
  ~TensorWriter();
  TensorWriter(const TensorWriter&) = delete;
  TensorWriter& operator=(const TensorWriter&) = delete;

  /// Writes a planned tensor, once, in any order. Another dtype or shape than planned is
  /// ExitCode::internal.
  void write(const std::string& name, const at::Tensor& tensor);
  /// Rows [first, first + n) of the first dimension of a planned tensor. The same.
  void write_rows(const std::string& name, int64_t first, const at::Tensor& rows);
  /// Syncs and closes; returns how many bytes of tensors were written here.
  uint64_t close();
  /// The same, of a file that one process writes: fewer or more bytes than planned are
  /// ExitCode::internal.
  void finish();
  uint64_t bytes() const { return data_begin_ + data_bytes_; }

 private:
  const TensorEntry& planned_entry(const std::string& name) const;
  void expect_planned(const std::string& name, const TensorEntry& entry, const at::Tensor& tensor,
                      const std::vector<int64_t>& shape) const;
  void write_tensor(uint64_t offset, const at::Tensor& tensor);
  void write_at(uint64_t offset, const void* data, size_t bytes);

  fs::path path_;
  TensorPlan plan_;
  int descriptor_ = -1;
  uint64_t data_begin_ = 0, data_bytes_ = 0, written_ = 0;
};

}  // namespace selfcal
