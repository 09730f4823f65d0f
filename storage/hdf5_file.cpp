#include "storage/hdf5_calls.hpp"

namespace selfcal::hdf5 {
namespace {

/// HDF5 prints its error stack by default; ours is one line.
void start_library() {
  static const bool started = [] {
    return H5open() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  }();
  if (!started) fail(ExitCode::internal, "HDF5 does not start");
}

PropertyList access_by_path() {
  PropertyList access(H5Pcreate(H5P_FILE_ACCESS));
  // Version 1.8 headers carry checksums; file locks do not work on parallel file systems.
  H5Pset_libver_bounds(access.id(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  H5Pset_file_locking(access.id(), false, true);
  return access;
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
  const PropertyList creation = timeless(H5P_FILE_CREATE);
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
