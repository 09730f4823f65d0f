// HDF5 through its C API: handles that close themselves, tensors in and out, every failure one
// line.
//
// HDF5 is not thread-safe here: all calls of a process must come from one thread. Calls are
// independent unless they are marked collective.
#pragma once
#include <ATen/core/Tensor.h>
#include <hdf5.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"

namespace selfcal::hdf5 {

/// Owns one HDF5 identifier; move-only.
template <herr_t (*Close)(hid_t)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id) noexcept : id_(id) {}
  ~Handle() {
    if (id_ >= 0) Close(id_);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }

  hid_t id() const noexcept { return id_; }
  hid_t release() noexcept { return std::exchange(id_, -1); }

 private:
  hid_t id_ = -1;
};

using FileHandle = Handle<H5Fclose>;
using GroupHandle = Handle<H5Gclose>;
using DatasetHandle = Handle<H5Dclose>;
using AttributeHandle = Handle<H5Aclose>;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using PropertyList = Handle<H5Pclose>;

/// The type of an element in a file: IEEE and two's-complement little-endian; bfloat16 is a user
/// float that h5dump and h5py convert; bool is stored as uint8.
Type file_type(at::ScalarType dtype);

/// How a dataset is laid out. With `deflate` > 0 it is cut into chunks of rows (about a megabyte),
/// shuffled and deflated; else it is contiguous.
struct Layout {
  int deflate = 0;
};

/// What an attribute may hold.
using Value = std::variant<std::string, int64_t, double>;

/// What the header of a dataset says.
struct DatasetInfo {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;         // of the elements
  uint64_t stored_bytes = 0;  // in the file, after filters
};

/// A group of an open file, which stays open as long as one of its groups. Reading something that
/// is absent, damaged or of another type is ExitCode::data; failures of the system are
/// ExitCode::io. Messages begin with file and place:
/// "layers/0007.h5:/model.layers.7.mlp.up_proj.weight/codes".
class Group {
 public:
  bool has(const std::string& name) const;
  /// Names of the groups, datasets and attributes directly in this one, sorted.
  std::vector<std::string> groups() const;
  std::vector<std::string> datasets() const;
  std::vector<std::string> attributes() const;

  Group create_group(const std::string& name) const;
  Group group(const std::string& name) const;

  void write(const std::string& name, const at::Tensor& tensor) const;
  DatasetInfo info(const std::string& name) const;
  at::Tensor read(const std::string& name) const;
  /// Rows [first, first + count) of the first dimension.
  at::Tensor read_rows(const std::string& name, int64_t first, int64_t count) const;

  /// In a parallel file, collective: creates a dataset that write_rows fills.
  void create(const std::string& name, at::ScalarType dtype, const std::vector<int64_t>& shape,
              Layout layout = {}) const;
  /// Rows [first, first + rows.size(0)) of a created dataset. Collective when the dataset has
  /// filters and the file is parallel (a rank without rows gives an empty tensor), else
  /// independent.
  void write_rows(const std::string& name, int64_t first, const at::Tensor& rows) const;

  void set(const std::string& name, const std::string& text) const;
  void set(const std::string& name, const char* text) const { set(name, std::string(text)); }
  void set(const std::string& name, int64_t number) const;
  void set(const std::string& name, double number) const;
  void set(const std::string& name, const Value& value) const;
  bool has_attribute(const std::string& name) const;
  /// All attributes of this group.
  std::map<std::string, Value> values() const;
  std::string text(const std::string& name) const;
  int64_t integer(const std::string& name) const;
  double real(const std::string& name) const;

  /// "file:/place/name", for messages.
  std::string place(const std::string& name = {}) const;

 private:
  friend class File;
  struct Origin;
  Group(std::shared_ptr<const Origin> origin, GroupHandle group, std::string path);
  std::vector<std::string> members(H5I_type_t kind) const;
  void write_attribute(const std::string& name, const Type& type, const void* value) const;
  AttributeHandle open_attribute(const std::string& name, H5T_class_t expected) const;

  std::shared_ptr<const Origin> origin_;
  GroupHandle group_;
  std::string path_;
};

class File {
 public:
  /// Opens for reading. No file: ExitCode::io; not an HDF5 file, or one cut short: ExitCode::data.
  static Group open(const fs::path& path);

  /// Builds a file in memory with `fill`, then writes it atomically: HDF5 itself never meets a full
  /// disk, which it does not survive well. `expected_bytes` sizes the memory.
  static void write(const fs::path& path, uint64_t expected_bytes,
                    const std::function<void(const Group&)>& fill);

  /// Collective over `ranks`: creates `path` in place, calls `fill` on every rank (which makes the
  /// same collective calls on all), closes. Not atomic: the caller renames. MPI_COMM_NULL: this
  /// process alone, without MPI. After an error the file is left open and HDF5 unfit for
  /// MPI_Finalize: end by abort.
  static void write_in_place(const fs::path& path, MPI_Comm ranks,
                             const std::function<void(const Group&)>& fill);

 private:
  static Group root_of(std::shared_ptr<const Group::Origin> origin);
  static std::shared_ptr<Group::Origin> create(const fs::path& path, const PropertyList& access);
};

}  // namespace selfcal::hdf5
