#include "storage/hdf5.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "storage/dtype.hpp"
#include "storage/hdf5_calls.hpp"

namespace selfcal::hdf5 {

namespace {

constexpr std::array every_dtype{at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
                                 at::kInt,    at::kShort, at::kChar, at::kByte};

at::ScalarType dtype_of(const Type& type, const std::string& place) {
  for (const auto dtype : every_dtype)
    if (H5Tequal(type.id(), file_type(dtype).id()) > 0) return dtype;
  fail(ExitCode::data, "{}: an element type that is none of {}", place, known_dtypes());
}

std::vector<hsize_t> extents(const std::vector<int64_t>& shape) {
  return {shape.begin(), shape.end()};
}

Space space_of(const std::vector<int64_t>& shape) {
  const auto sizes = extents(shape);
  return Space(shape.empty()
                   ? H5Screate(H5S_SCALAR)
                   : H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr));
}

std::vector<int64_t> shape_of(const Space& space, const std::string& place) {
  const int dimensions =
      checked(H5Sget_simple_extent_ndims(space.id()), place, "cannot read the shape");
  std::vector<hsize_t> sizes(static_cast<size_t>(dimensions));
  checked(H5Sget_simple_extent_dims(space.id(), sizes.data(), nullptr), place,
          "cannot read the shape");
  return {sizes.begin(), sizes.end()};
}

DatasetHandle open_dataset(hid_t group, const std::string& name, const std::string& place) {
  return DatasetHandle(checked(H5Dopen2(group, name.c_str(), H5P_DEFAULT), place, "cannot open"));
}

bool has_filters(const DatasetHandle& dataset) {
  const PropertyList creation(H5Dget_create_plist(dataset.id()));
  return H5Pget_nfilters(creation.id()) > 0;
}

/// Bytes of the elements; a damaged header must not make us allocate what the file cannot hold.
DatasetInfo describe(const DatasetHandle& dataset, const std::string& place) {
  const Type type(checked(H5Dget_type(dataset.id()), place, "cannot read the type"));
  const Space space(checked(H5Dget_space(dataset.id()), place, "cannot read the shape"));
  DatasetInfo info{dtype_of(type, place), shape_of(space, place), 0,
                   H5Dget_storage_size(dataset.id())};
  int64_t bytes = static_cast<int64_t>(c10::elementSize(info.dtype));
  for (const int64_t size : info.shape)
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes))
      fail(ExitCode::data, "{}: shape {} overflows", place, shape_text(info.shape));
  info.bytes = static_cast<uint64_t>(bytes);
  if (!has_filters(dataset) && info.stored_bytes != info.bytes)
    fail(ExitCode::data, "{}: {} bytes are stored, expected {} for {} {}", place, info.stored_bytes,
         info.bytes, dtype_name(info.dtype), shape_text(info.shape));
  return info;
}

/// The file's part of a transfer of rows; selects nothing where there are none.
Space select_rows(const DatasetHandle& dataset, const std::vector<int64_t>& shape, int64_t first,
                  int64_t count) {
  Space space(H5Dget_space(dataset.id()));
  if (count == 0) {
    H5Sselect_none(space.id());
  } else if (!shape.empty()) {
    std::vector<hsize_t> start(shape.size(), 0), extent = extents(shape);
    start[0] = static_cast<hsize_t>(first);
    extent[0] = static_cast<hsize_t>(count);
    H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr);
  }
  return space;
}

PropertyList creation_of(const std::vector<int64_t>& shape, at::ScalarType dtype, Layout layout) {
  PropertyList creation = timeless(H5P_DATASET_CREATE);
  H5Pset_fill_time(creation.id(), H5D_FILL_TIME_NEVER);
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  if (layout.deflate == 0 || shape.empty() || empty) {
    H5Pset_layout(creation.id(), H5D_CONTIGUOUS);
    H5Pset_alloc_time(creation.id(), H5D_ALLOC_TIME_EARLY);
    return creation;
  }
  auto chunk = extents(shape);
  const auto row = std::accumulate(chunk.begin() + 1, chunk.end(), hsize_t{c10::elementSize(dtype)},
                                   std::multiplies<>());
  chunk[0] = std::clamp<hsize_t>((hsize_t{1} << 20) / row, 1, chunk[0]);
  H5Pset_chunk(creation.id(), static_cast<int>(chunk.size()), chunk.data());
  H5Pset_shuffle(creation.id());
  H5Pset_deflate(creation.id(), static_cast<unsigned>(layout.deflate));
  return creation;
}

}  // namespace

Group::Group(std::shared_ptr<const Origin> origin, GroupHandle group, std::string path)
    : origin_(std::move(origin)), group_(std::move(group)), path_(std::move(path)) {}

std::string Group::place(const std::string& name) const {
  return printable(fmt::format("{}:{}{}", origin_->path, path_, name));
}

bool Group::has(const std::string& name) const {
  return checked(H5Lexists(group_.id(), name.c_str(), H5P_DEFAULT), place(name), "cannot look up") >
         0;
}

std::vector<std::string> Group::members(H5I_type_t kind) const {
  H5G_info_t info{};
  checked(H5Gget_info(group_.id(), &info), place(), "cannot list");
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    const Handle<H5Oclose> object(
        checked(H5Oopen_by_idx(group_.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, H5P_DEFAULT),
                place(), "cannot list"));
    if (H5Iget_type(object.id()) != kind) continue;
    std::string name;
    const ssize_t length = checked(H5Lget_name_by_idx(group_.id(), ".", H5_INDEX_NAME, H5_ITER_INC,
                                                      i, nullptr, 0, H5P_DEFAULT),
                                   place(), "cannot list");
    name.resize(static_cast<size_t>(length) + 1);
    checked(H5Lget_name_by_idx(group_.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(),
                               name.size(), H5P_DEFAULT),
            place(), "cannot list");
    name.pop_back();
    names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> Group::groups() const { return members(H5I_GROUP); }
std::vector<std::string> Group::datasets() const { return members(H5I_DATASET); }

Group Group::create_group(const std::string& name) const {
  if (name.empty() || name == "." || name.find('/') != std::string::npos)
    fail(ExitCode::data, "{}: '{}' cannot name a group", place(), printable(name));
  const PropertyList creation = timeless(H5P_GROUP_CREATE);
  GroupHandle made(
      checked(H5Gcreate2(group_.id(), name.c_str(), H5P_DEFAULT, creation.id(), H5P_DEFAULT),
              place(name), "cannot create", ExitCode::io));
  return {origin_, std::move(made), path_ + name + "/"};
}

Group Group::group(const std::string& name) const {
  GroupHandle opened(
      checked(H5Gopen2(group_.id(), name.c_str(), H5P_DEFAULT), place(name), "cannot open"));
  return {origin_, std::move(opened), path_ + name + "/"};
}

void Group::create(const std::string& name, at::ScalarType dtype, const std::vector<int64_t>& shape,
                   Layout layout) const {
  if (name.empty() || name == "." || name.find('/') != std::string::npos)
    fail(ExitCode::data, "{}: '{}' cannot name a dataset", place(), printable(name));
  const Type type = file_type(dtype);
  const Space space = space_of(shape);
  const PropertyList creation = creation_of(shape, dtype, layout);
  const DatasetHandle made(checked(H5Dcreate2(group_.id(), name.c_str(), type.id(), space.id(),
                                              H5P_DEFAULT, creation.id(), H5P_DEFAULT),
                                   place(name), "cannot create", ExitCode::io));
}

void Group::write(const std::string& name, const at::Tensor& tensor) const {
  create(name, tensor.scalar_type(), tensor.sizes().vec());
  write_rows(name, 0, tensor);
}

void Group::write_rows(const std::string& name, int64_t first, const at::Tensor& rows) const {
  const DatasetHandle dataset = open_dataset(group_.id(), name, place(name));
  const DatasetInfo info = describe(dataset, place(name));
  const at::Tensor source = rows.contiguous();
  const int64_t count = source.numel() == 0 ? 0 : (info.shape.empty() ? 1 : source.size(0));
  const Space into = select_rows(dataset, info.shape, first, count);
  const Space from = count == 0 ? Space(H5Scopy(into.id())) : space_of(source.sizes().vec());
  const PropertyList transfer(H5Pcreate(H5P_DATASET_XFER));
  if (origin_->parallel && has_filters(dataset))
    H5Pset_dxpl_mpio(transfer.id(), H5FD_MPIO_COLLECTIVE);
  const Type type = file_type(source.scalar_type());
  // HDF5 wants an address even where nothing is selected.
  const char nothing = 0;
  const void* data = count == 0 ? &nothing : source.const_data_ptr();
  checked(H5Dwrite(dataset.id(), type.id(), from.id(), into.id(), transfer.id(), data), place(name),
          "cannot write", ExitCode::io);
}

DatasetInfo Group::info(const std::string& name) const {
  return describe(open_dataset(group_.id(), name, place(name)), place(name));
}

at::Tensor Group::read(const std::string& name) const {
  const DatasetHandle dataset = open_dataset(group_.id(), name, place(name));
  const DatasetInfo info = describe(dataset, place(name));
  at::Tensor tensor = at::empty(info.shape, info.dtype);
  if (tensor.numel() == 0) return tensor;
  checked(H5Dread(dataset.id(), file_type(info.dtype).id(), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                  tensor.data_ptr()),
          place(name), "cannot read");
  return tensor;
}

at::Tensor Group::read_rows(const std::string& name, int64_t first, int64_t count) const {
  const DatasetHandle dataset = open_dataset(group_.id(), name, place(name));
  DatasetInfo info = describe(dataset, place(name));
  if (info.shape.empty() || first < 0 || count < 0 || first > info.shape[0] ||
      count > info.shape[0] - first)
    fail(ExitCode::data, "{}: {} has no rows {} to {}", place(name), shape_text(info.shape), first,
         first + count);
  const Space from = select_rows(dataset, info.shape, first, count);
  info.shape[0] = count;
  at::Tensor tensor = at::empty(info.shape, info.dtype);
  if (tensor.numel() == 0) return tensor;
  const Space into = space_of(info.shape);
  checked(H5Dread(dataset.id(), file_type(info.dtype).id(), into.id(), from.id(), H5P_DEFAULT,
                  tensor.data_ptr()),
          place(name), "cannot read");
  return tensor;
}

}  // namespace selfcal::hdf5
