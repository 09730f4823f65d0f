#include "storage/hdf5.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "storage/dtype.hpp"

namespace selfcal::hdf5 {

struct Group::Origin {
  FileHandle file;
  std::string path;
  bool parallel = false;
};

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

template <class Result>
Result checked(Result result, const std::string& place, const char* action,
               ExitCode code = ExitCode::data) {
  if (result >= 0) return result;
  const std::string reason = reason_of_failure();
  fail(is_system_error(reason) ? ExitCode::io : code, "{}: {}: {}", place, action, reason);
}

/// HDF5 prints its error stack by default; ours is one line.
void start_library() {
  static const bool started = [] {
    return H5open() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  }();
  if (!started) fail(ExitCode::internal, "HDF5 does not start");
}

Type small_float(size_t exponent_bits, size_t mantissa_bits, size_t bias) {
  Type type(H5Tcopy(H5T_IEEE_F32LE));
  H5Tset_fields(type.id(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
  H5Tset_size(type.id(), 2);
  H5Tset_ebias(type.id(), bias);
  return type;
}

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

PropertyList access_by_path() {
  PropertyList access(H5Pcreate(H5P_FILE_ACCESS));
  // Version 1.8 headers carry checksums; file locks do not work on parallel file systems.
  H5Pset_libver_bounds(access.id(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  H5Pset_file_locking(access.id(), false, true);
  return access;
}

PropertyList creation_of(const std::vector<int64_t>& shape, at::ScalarType dtype, Layout layout) {
  PropertyList creation(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_obj_track_times(creation.id(), false);
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

/// The bytes of a file that is held in memory; valid until it is closed. (H5Fget_file_image would
/// copy them, and in 1.10 leaves a superblock with a wrong checksum.)
std::string_view image_of(const FileHandle& file, const std::string& place) {
  constexpr const char* action = "cannot build";
  checked(H5Fflush(file.id(), H5F_SCOPE_GLOBAL), place, action, ExitCode::internal);
  const ssize_t bytes =
      checked(H5Fget_file_image(file.id(), nullptr, 0), place, action, ExitCode::internal);
  const char** memory = nullptr;
  checked(H5Fget_vfd_handle(file.id(), H5P_DEFAULT, reinterpret_cast<void**>(&memory)), place,
          action, ExitCode::internal);
  return {*memory, static_cast<size_t>(bytes)};
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

std::vector<std::string> Group::attributes() const {
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5A_info_t*, void* into) -> herr_t {
    static_cast<std::vector<std::string>*>(into)->emplace_back(name);
    return 0;
  };
  checked(H5Aiterate2(group_.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), place(),
          "cannot list");
  std::sort(names.begin(), names.end());
  return names;
}

Group Group::create_group(const std::string& name) const {
  if (name.empty() || name == "." || name.find('/') != std::string::npos)
    fail(ExitCode::data, "{}: '{}' cannot name a group", place(), printable(name));
  GroupHandle made(
      checked(H5Gcreate2(group_.id(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
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

void Group::write_attribute(const std::string& name, const Type& type, const void* value) const {
  const Space space(H5Screate(H5S_SCALAR));
  const AttributeHandle made(checked(
      H5Acreate2(group_.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT),
      place("@" + name), "cannot create", ExitCode::io));
  checked(H5Awrite(made.id(), type.id(), value), place("@" + name), "cannot write", ExitCode::io);
}

void Group::set(const std::string& name, const std::string& text) const {
  // Fixed length, in the object's header: covered by its checksum, unlike HDF5's heap of
  // variable-length strings.
  const Type type(H5Tcopy(H5T_C_S1));
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  H5Tset_strpad(type.id(), H5T_STR_NULLPAD);
  H5Tset_size(type.id(), std::max<size_t>(text.size(), 1));
  write_attribute(name, type, text.c_str());
}

void Group::set(const std::string& name, int64_t number) const {
  write_attribute(name, file_type(at::kLong), &number);
}

void Group::set(const std::string& name, double number) const {
  write_attribute(name, file_type(at::kDouble), &number);
}

void Group::set(const std::string& name, const Value& value) const {
  std::visit([&](const auto& plain) { set(name, plain); }, value);
}

std::map<std::string, Value> Group::values() const {
  std::map<std::string, Value> all;
  for (const auto& name : attributes()) {
    const AttributeHandle attribute(checked(H5Aopen(group_.id(), name.c_str(), H5P_DEFAULT),
                                            place("@" + name), "cannot open the attribute"));
    const Type type(
        checked(H5Aget_type(attribute.id()), place("@" + name), "cannot read the type"));
    switch (H5Tget_class(type.id())) {
      case H5T_STRING:
        all.emplace(name, text(name));
        break;
      case H5T_INTEGER:
        all.emplace(name, integer(name));
        break;
      default:
        all.emplace(name, real(name));
    }
  }
  return all;
}

bool Group::has_attribute(const std::string& name) const {
  return checked(H5Aexists(group_.id(), name.c_str()), place("@" + name), "cannot look up") > 0;
}

AttributeHandle Group::open_attribute(const std::string& name, H5T_class_t expected) const {
  AttributeHandle attribute(checked(H5Aopen(group_.id(), name.c_str(), H5P_DEFAULT),
                                    place("@" + name), "cannot open the attribute"));
  const Type type(checked(H5Aget_type(attribute.id()), place("@" + name), "cannot read the type"));
  const Space space(
      checked(H5Aget_space(attribute.id()), place("@" + name), "cannot read the shape"));
  if (H5Tget_class(type.id()) != expected || H5Sget_simple_extent_npoints(space.id()) != 1)
    fail(ExitCode::data, "{}: expected one {}", place("@" + name),
         expected == H5T_STRING    ? "string"
         : expected == H5T_INTEGER ? "integer"
                                   : "real number");
  return attribute;
}

std::string Group::text(const std::string& name) const {
  const AttributeHandle attribute = open_attribute(name, H5T_STRING);
  const Type type(H5Aget_type(attribute.id()));
  if (H5Tis_variable_str(type.id()) != 0)
    fail(ExitCode::data, "{}: expected a string of fixed length", place("@" + name));
  std::string text(H5Tget_size(type.id()), '\0');
  checked(H5Aread(attribute.id(), type.id(), text.data()), place("@" + name), "cannot read");
  text.resize(std::min(text.size(), text.find_last_not_of('\0') + 1));
  return text;
}

int64_t Group::integer(const std::string& name) const {
  int64_t number = 0;
  checked(H5Aread(open_attribute(name, H5T_INTEGER).id(), H5T_NATIVE_INT64, &number),
          place("@" + name), "cannot read");
  return number;
}

double Group::real(const std::string& name) const {
  double number = 0;
  checked(H5Aread(open_attribute(name, H5T_FLOAT).id(), H5T_NATIVE_DOUBLE, &number),
          place("@" + name), "cannot read");
  return number;
}

Group File::open(const fs::path& path) {
  start_library();
  const InputFile present(path);
  const PropertyList access = access_by_path();
  auto origin = std::make_shared<Group::Origin>();
  origin->path = path.string();
  origin->file = FileHandle(
      checked(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), path.string(), "cannot open"));
  return root_of(std::move(origin));
}

Group File::root_of(std::shared_ptr<const Group::Origin> origin) {
  GroupHandle root(
      checked(H5Gopen2(origin->file.id(), "/", H5P_DEFAULT), origin->path, "cannot open"));
  return {std::move(origin), std::move(root), "/"};
}

std::shared_ptr<Group::Origin> File::create(const fs::path& path, const PropertyList& access) {
  PropertyList creation(H5Pcreate(H5P_FILE_CREATE));
  H5Pset_obj_track_times(creation.id(), false);
  auto origin = std::make_shared<Group::Origin>();
  origin->path = path.string();
  origin->file =
      FileHandle(checked(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.id(), access.id()),
                         path.string(), "cannot create", ExitCode::io));
  return origin;
}

void File::write(const fs::path& path, uint64_t expected_bytes,
                 const std::function<void(const Group&)>& fill) {
  start_library();
  const PropertyList access = access_by_path();
  constexpr size_t megabyte = 1 << 20;
  checked(H5Pset_fapl_core(access.id(), expected_bytes + megabyte, false), path.string(),
          "cannot create");
  const auto origin = create(path, access);
  fill(root_of(origin));
  write_text_atomically(path, image_of(origin->file, path.string()));
}

void File::write_in_place(const fs::path& path, MPI_Comm ranks,
                          const std::function<void(const Group&)>& fill) {
  start_library();
  const bool parallel = ranks != MPI_COMM_NULL;
  const PropertyList access = access_by_path();
  if (parallel) {
    checked(H5Pset_fapl_mpio(access.id(), ranks, MPI_INFO_NULL), path.string(), "cannot create",
            ExitCode::io);
    H5Pset_coll_metadata_write(access.id(), true);
  }
  const auto origin = create(path, access);
  origin->parallel = parallel;
  try {
    fill(root_of(origin));
  } catch (...) {
    origin->file.release();  // closing is collective too, and the other ranks do not come
    throw;
  }
  checked(H5Fclose(origin->file.release()), path.string(), "cannot write", ExitCode::io);
}

}  // namespace selfcal::hdf5
