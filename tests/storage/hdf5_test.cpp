#include "storage/hdf5.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <thread>
#include <type_traits>

#include "storage/dtype.hpp"
#include "temporary_folder.hpp"

namespace selfcal::hdf5 {
namespace {

static_assert(!std::is_copy_constructible_v<Space> && !std::is_copy_assignable_v<Space>);
static_assert(std::is_nothrow_move_constructible_v<Space> &&
              std::is_nothrow_move_assignable_v<Space>);

TEST(Hdf5, HandlesCloseOnceAndMove) {
  Space first(H5Screate(H5S_SCALAR));
  const hid_t id = first.id();
  {
    const Space second(std::move(first));
    EXPECT_EQ(first.id(), -1);
    EXPECT_GT(H5Iis_valid(id), 0);
  }
  EXPECT_EQ(H5Iis_valid(id), 0);
}

TEST(Hdf5, EveryDtypeComesBack) {
  const TemporaryFolder folder;
  const at::Tensor values = at::arange(-7, 8, at::kFloat).reshape({5, 3});
  const std::vector dtypes{at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
                           at::kInt,    at::kShort, at::kChar, at::kByte};
  File::write(folder / "a.h5", 0, [&](const Group& file) {
    for (const auto dtype : dtypes) file.write(std::string(dtype_name(dtype)), values.to(dtype));
    file.write("bool", values.to(at::kBool));
    file.write("scalar", at::scalar_tensor(2.5));
    file.write("empty", at::empty({0, 4}, at::kHalf));
    file.write("transposed", values.t());
  });
  const Group file = File::open(folder / "a.h5");
  for (const auto dtype : dtypes) {
    const at::Tensor back = file.read(std::string(dtype_name(dtype)));
    EXPECT_EQ(back.scalar_type(), dtype);
    EXPECT_TRUE(at::equal(back, values.to(dtype))) << dtype_name(dtype);
  }
  EXPECT_TRUE(at::equal(file.read("bool"), values.to(at::kBool).to(at::kByte)));
  EXPECT_EQ(file.read("scalar").item<float>(), 2.5);
  EXPECT_EQ(file.read("empty").sizes(), (at::IntArrayRef{0, 4}));
  EXPECT_TRUE(at::equal(file.read("transposed"), values.t()));
  EXPECT_TRUE(at::equal(file.read_rows("F32", 1, 3), values.narrow(0, 1, 3)));
  expect_error(ExitCode::data, "has no rows 4 to 6", [&] { file.read_rows("F32", 4, 2); });
}

/// HDF5 must understand the small floats as numbers, as other readers do, not only as bytes.
TEST(Hdf5, SmallFloatsAreFloatsToOtherReaders) {
  const TemporaryFolder folder;
  const at::Tensor values = at::tensor({1.0, -2.5, 0.0078125, 3.0e4, INFINITY}, at::kFloat);
  File::write(folder / "a.h5", 0, [&](const Group& file) {
    file.write("bf16", values.to(at::kBFloat16));
    file.write("f16", values.to(at::kHalf));
  });
  const FileHandle file(H5Fopen((folder / "a.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  for (const auto& [name, dtype] :
       {std::pair("bf16", at::kBFloat16), std::pair("f16", at::kHalf)}) {
    const DatasetHandle dataset(H5Dopen2(file.id(), name, H5P_DEFAULT));
    at::Tensor read = at::empty({5}, at::kFloat);
    ASSERT_GE(
        H5Dread(dataset.id(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, read.data_ptr()), 0);
    EXPECT_TRUE(at::equal(read, values.to(dtype).to(at::kFloat))) << name;
  }
}

TEST(Hdf5, AttributesComeBack) {
  const TemporaryFolder folder;
  const std::string longest(100'000, 'x');
  File::write(folder / "a.h5", 0, [&](const Group& file) {
    const Group inner = file.create_group("inner");
    inner.set("text", "späße");
    inner.set("empty", "");
    inner.set("long", longest);
    inner.set("integer", int64_t{-3});
    inner.set("real", 0.1);
  });
  const Group inner = File::open(folder / "a.h5").group("inner");
  EXPECT_EQ(inner.attributes(),
            (std::vector<std::string>{"empty", "integer", "long", "real", "text"}));
  EXPECT_EQ(inner.text("text"), "späße");
  EXPECT_EQ(inner.text("empty"), "");
  EXPECT_EQ(inner.text("long"), longest);
  EXPECT_EQ(inner.integer("integer"), -3);
  EXPECT_EQ(inner.real("real"), 0.1);
  EXPECT_FALSE(inner.has_attribute("absent"));
  expect_error(ExitCode::data, "a.h5:/inner/@absent: cannot open the attribute",
               [&] { inner.text("absent"); });
  expect_error(ExitCode::data, "expected one integer", [&] { inner.integer("text"); });
}

TEST(Hdf5, ListsItsMembers) {
  const TemporaryFolder folder;
  File::write(folder / "a.h5", 0, [&](const Group& file) {
    file.create_group("model.layers.10.weight");
    file.create_group("model.layers.9.weight");
    file.write("x", at::ones({2}));
  });
  const Group file = File::open(folder / "a.h5");
  EXPECT_EQ(file.groups(),
            (std::vector<std::string>{"model.layers.10.weight", "model.layers.9.weight"}));
  EXPECT_EQ(file.datasets(), (std::vector<std::string>{"x"}));
  EXPECT_TRUE(file.has("x"));
  EXPECT_FALSE(file.has("y"));
  EXPECT_EQ(file.info("x").bytes, 8U);
  expect_error(ExitCode::data, "a.h5:/y: cannot open", [&] { file.read("y"); });
}

TEST(Hdf5, FilesThatAreNotHdf5) {
  const TemporaryFolder folder;
  expect_error(ExitCode::io, "absent.h5", [&] { File::open(folder / "absent.h5"); });
  write_bytes(folder / "a.h5", std::string(5000, 'x'));
  expect_error(ExitCode::data, "a.h5: cannot open", [&] { File::open(folder / "a.h5"); });
  write_bytes(folder / "a.h5", "");
  expect_error(ExitCode::data, "a.h5: cannot open", [&] { File::open(folder / "a.h5"); });
}

TEST(Hdf5, SameContentSameBytesWheneverWritten) {
  const TemporaryFolder folder;
  for (const char* name : {"a.h5", "b.h5"}) {
    File::write(folder / name, 0, [&](const Group& file) {
      file.create_group("g").write("x", at::arange(100));
      file.set("text", "t");
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5 counts in seconds
  }
  EXPECT_EQ(read_bytes(folder / "a.h5"), read_bytes(folder / "b.h5"));
}

/// A limit on the size of files stands in for a full disk: the write fails in the same places.
TEST(Hdf5, FullDiskIsOneErrorAndLeavesNothing) {
  const TemporaryFolder folder;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{100}, rlim_t{4096}, rlim_t{1} << 20}) {
    const rlimit small{limit, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    expect_error(ExitCode::io, "a.h5: write failed: File too large", [&] {
      File::write(folder / "a.h5", 0,
                  [](const Group& file) { file.write("x", at::zeros({1 << 20})); });
    });
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_TRUE(fs::is_empty(folder.path()));
  }
  std::signal(SIGXFSZ, old_handler);
}

}  // namespace
}  // namespace selfcal::hdf5
