#include "storage/tensor_file.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <random>

#include "storage/dtype.hpp"
#include "storage/tensor_hash.hpp"
#include "storage/tensor_header.hpp"
#include "storage/tensor_writer.hpp"
#include "temporary_folder.hpp"

namespace selfcal {
namespace {

std::string with_length(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

/// Opens a file of these bytes; it must be refused with ExitCode::data and `part` in the message.
void expect_refused(const std::string& bytes, const std::string& part) {
  const TemporaryFolder folder;
  write_bytes(folder / "a.safetensors", bytes);
  expect_error(ExitCode::data, part, [&] { TensorFile file(folder / "a.safetensors"); });
  expect_error(ExitCode::data, "a.safetensors", [&] { TensorFile file(folder / "a.safetensors"); });
}

NamedTensors every_dtype() {
  NamedTensors tensors;
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                           at::kShort, at::kChar, at::kByte, at::kBool})
    tensors[std::string("t.") + std::string(dtype_name(dtype))] =
        at::arange(-7, 8, at::kFloat).reshape({5, 3}).to(dtype);
  tensors["scalar"] = at::scalar_tensor(2.5, at::kFloat);
  tensors["empty"] = at::empty({0, 4}, at::kHalf);
  tensors["nan"] = at::full({3}, NAN, at::kBFloat16);
  tensors["odd"] = at::ones({3}, at::kByte);
  return tensors;
}

TEST(TensorFile, EveryDtypeComesBack) {
  const TemporaryFolder folder;
  const NamedTensors tensors = every_dtype();
  write_tensor_file(folder / "a.safetensors", tensors,
                    {{"format", "pt"}, {"with \"quotes\"\n", "ä"}});
  const TensorFile file(folder / "a.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().at("with \"quotes\"\n"), "ä");
  ASSERT_EQ(file.entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor back = file.read(name);
    EXPECT_EQ(back.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(back.sizes(), tensor.sizes()) << name;
    EXPECT_EQ(tensor_hash(back), tensor_hash(tensor)) << name;
    EXPECT_EQ(file.entries().at(name).offset % tensor.element_size(), 0U)
        << name << " is not aligned";
  }
}

TEST(TensorFile, NonContiguousTensorsAreWrittenByValue) {
  const TemporaryFolder folder;
  const at::Tensor tensor = at::arange(6, at::kFloat).reshape({2, 3});
  write_tensor_file(folder / "a.safetensors", {{"t", tensor.t()}});
  EXPECT_TRUE(at::equal(TensorFile(folder / "a.safetensors").read("t"), tensor.t()));
}

TEST(TensorFile, TensorComesInParts) {
  const TemporaryFolder folder;
  const at::Tensor rows = at::randn({7, 3}), other = at::randn({2});
  TensorWriter writer(folder / "a.safetensors",
                      {{"rows", planned(at::kFloat, {7, 3})}, {"other", planned(at::kFloat, {2})}});
  writer.write_rows("rows", 0, rows.slice(0, 0, 4));
  EXPECT_THROW(writer.write_rows("rows", 4, rows.slice(1, 0, 2)), Error);
  EXPECT_THROW(writer.write_rows("rows", -1, rows.slice(0, 0, 4)), Error);
  EXPECT_THROW(writer.write_rows("rows", 5, rows.slice(0, 4)), Error);
  writer.write("other", other);
  EXPECT_THROW(writer.finish(), Error);
  writer.write_rows("rows", 4, rows.slice(0, 4));
  writer.finish();
  const TensorFile file(folder / "a.safetensors");
  EXPECT_TRUE(at::equal(file.read("rows"), rows));
  EXPECT_TRUE(at::equal(file.read("other"), other));
}

TEST(TensorFile, WhatIsWrittenTwiceIsNoticed) {
  const TemporaryFolder folder;
  TensorWriter writer(folder / "a.safetensors", {{"t", planned(at::kFloat, {3})}});
  writer.write("t", at::ones({3}));
  writer.write("t", at::ones({3}));
  EXPECT_THROW(writer.finish(), Error);
}

TEST(TensorFile, SeveralWritersShareAFile) {
  const TemporaryFolder folder;
  const at::Tensor rows = at::randn({7, 3}), other = at::randn({2});
  const TensorPlan plan{{"rows", planned(at::kFloat, {7, 3})}, {"other", planned(at::kFloat, {2})}};
  const fs::path path = folder / "a.safetensors";
  EXPECT_THROW(TensorWriter(path, plan, {}, TensorWriter::Header::is_there), Error);
  TensorWriter first(path, plan), second(path, plan, {}, TensorWriter::Header::is_there);
  second.write_rows("rows", 3, rows.slice(0, 3));
  first.write_rows("rows", 0, rows.slice(0, 0, 3));
  first.write("other", other);
  EXPECT_EQ(first.close() + second.close(), plan.at("rows").bytes + plan.at("other").bytes);
  const TensorFile file(path);
  EXPECT_TRUE(at::equal(file.read("rows"), rows));
  EXPECT_TRUE(at::equal(file.read("other"), other));
}

TEST(TensorFile, RowsAreReadAlone) {
  const TemporaryFolder folder;
  const at::Tensor tensor = at::arange(30, at::kInt).reshape({5, 3, 2});
  write_tensor_file(folder / "a.safetensors",
                    {{"before", at::ones({4}, at::kDouble)}, {"t", tensor}});
  const TensorFile file(folder / "a.safetensors");
  EXPECT_TRUE(at::equal(file.read_rows("t", 1, 3), tensor.narrow(0, 1, 3)));
  EXPECT_TRUE(at::equal(file.read_rows("t", 5, 0), tensor.narrow(0, 5, 0)));
  expect_error(ExitCode::data, "no rows 3 to 6", [&] { file.read_rows("t", 3, 3); });
  expect_error(ExitCode::data, "no rows -1", [&] { file.read_rows("t", -1, 1); });
  expect_error(ExitCode::data, "no tensor 'other'", [&] { file.read("other"); });
}

TEST(TensorFile, HeaderHashFollowsTheHeader) {
  const TemporaryFolder folder;
  write_tensor_file(folder / "a.safetensors", {{"t", at::zeros({2})}});
  write_tensor_file(folder / "b.safetensors", {{"t", at::ones({2})}});
  write_tensor_file(folder / "c.safetensors", {{"t", at::zeros({3})}});
  const TensorFile a(folder / "a.safetensors"), b(folder / "b.safetensors"),
      c(folder / "c.safetensors");
  EXPECT_EQ(a.header_hash(), b.header_hash());
  EXPECT_NE(a.header_hash(), c.header_hash());
}

TEST(TensorFile, EveryTruncationIsAnError) {
  const TemporaryFolder folder;
  write_tensor_file(folder / "whole.safetensors",
                    {{"a", at::ones({2, 3})}, {"b", at::ones({3}, at::kByte)}});
  const std::string whole = read_bytes(folder / "whole.safetensors");
  for (size_t size = 0; size < whole.size(); ++size)
    expect_refused(whole.substr(0, size), "a.safetensors");
  expect_refused(whole + "x", "expected");
}

TEST(TensorFile, FileCutAfterOpeningNamesTheTensor) {
  const TemporaryFolder folder;
  write_tensor_file(folder / "a.safetensors", {{"a", at::ones({1000})}});
  const TensorFile file(folder / "a.safetensors");
  fs::resize_file(folder / "a.safetensors", 2000);
  expect_error(ExitCode::data, "tensor 'a'", [&] { file.read("a"); });
}

TEST(TensorFile, HeaderLengthsThatLie) {
  expect_refused(std::string(8, '\xff'), "header length 18446744073709551615");
  expect_refused(std::string("\x00\xe1\xf5\x05\x00\x00\x00\x00", 8),
                 "truncated: header of 100000000 bytes");
  expect_refused(std::string("\x01\xe1\xf5\x05\x00\x00\x00\x00", 8), "expected at most 100000000");
  expect_refused(std::string(8, '\0'), "not valid JSON");
  expect_refused("", "too short");
}

TEST(TensorFile, MissingFileIsAnInputOutputError) {
  expect_error(ExitCode::io, "absent.safetensors", [] { TensorFile file("absent.safetensors"); });
  expect_error(ExitCode::io, "not a regular file", [] { TensorFile file("/"); });
}

TEST(TensorFile, HeadersOfTheWrongForm) {
  const auto entry = [](const std::string& fields) {
    return with_length("{\"w\":" + fields + "}", "abcdefgh");
  };
  expect_refused(with_length("[]"), "expected an object");
  expect_refused(with_length("7"), "expected an object");
  expect_refused(with_length("{\"w\":3}"), "'w': is a number, expected an object");
  expect_refused(with_length("{\"w\":{}}"), "needs dtype");
  expect_refused(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"), "needs dtype");
  expect_refused(entry(R"({"dtype":"F32","shape":[2]})"), "needs dtype");
  expect_refused(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,9]})"), "a number");
  expect_refused(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1})"), "'more'");
  expect_refused(entry(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
                 "a string");
  expect_refused(entry(R"({"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]})"),
                 "a list");
  expect_refused(entry(R"({"dtype":"F99","shape":[2],"data_offsets":[0,8]})"),
                 "dtype 'F99' is not supported");
  expect_refused(entry(R"({"dtype":4,"shape":[2],"data_offsets":[0,8]})"), "a number");
  expect_refused(entry(R"({"dtype":"F32","shape":"2","data_offsets":[0,8]})"), "a string");
  expect_refused(entry(R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})"), "a list");
  expect_refused(entry(R"({"dtype":"F32","shape":[null],"data_offsets":[0,8]})"), "null");
  expect_refused(with_length(R"({"__metadata__":{"a":1}})"), "expected a string");
  expect_refused(with_length(R"({"__metadata__":{"a":"1","a":"2"}})"), "given twice");
  expect_refused(with_length(R"({"__metadata__":{},"__metadata__":{}})"), "listed twice");
  expect_refused(with_length(R"({"__metadata__":{}} {})"), "not valid JSON");
}

TEST(TensorFile, ShapesThatLie) {
  const auto entry = [](const std::string& dtype, const std::string& shape) {
    return with_length(
        fmt::format(R"({{"w":{{"dtype":"{}","shape":{},"data_offsets":[0,8]}}}})", dtype, shape),
        "abcdefgh");
  };
  expect_refused(entry("F32", "[3]"), "has 8 bytes, expected 12 for F32 [3]");
  expect_refused(entry("F64", "[2]"), "has 8 bytes, expected 16");
  expect_refused(entry("F32", "[-2]"), "shape is -2");
  expect_refused(entry("F32", "[2.0]"), "expected an integer");
  expect_refused(entry("F32", "[18446744073709551615]"), "too large");
  expect_refused(entry("F32", "[99999999999999999999999]"), "expected an integer");
  expect_refused(entry("F32", "[4294967296,4294967296]"), "overflows");
  expect_refused(entry("F32", "[9223372036854775807,9223372036854775807,2]"), "overflows");
  expect_refused(entry("F32", "[0,4611686018427387904,4611686018427387904]"), "overflows");
  std::string ones = "[2";
  for (int i = 0; i < 70; ++i) ones += ",1";
  expect_refused(entry("F32", ones + "]"), "more than 64 dimensions");
}

TEST(TensorFile, OffsetsThatLie) {
  const auto two = [](int a0, int a1, int b0, int b1) {
    return with_length(fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                                   R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                                   a1 - a0, a0, a1, b1 - b0, b0, b1),
                       "abcdefgh");
  };
  const TemporaryFolder folder;
  write_bytes(folder / "good.safetensors", two(0, 4, 4, 8));
  EXPECT_EQ(TensorFile(folder / "good.safetensors").read("b")[0].item<int>(), 'e');
  expect_refused(two(0, 5, 4, 8), "tensors overlap");
  expect_refused(two(0, 8, 0, 8), "tensors overlap");
  expect_refused(two(0, 3, 4, 8), "leave a hole");
  expect_refused(two(1, 4, 4, 8), "leave a hole");
  expect_refused(two(0, 4, 4, 7), "8 bytes of tensor data, expected 7");
  expect_refused(two(0, 4, 4, 9), "truncated");
  expect_refused(
      with_length(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[8,0]}})", "abcdefgh"),
      "before it begins");
  expect_refused(
      with_length(R"({"a":{"dtype":"U8","shape":[],"data_offsets":[18446744073709551615,0]}})"),
      "before it begins");
  expect_refused(with_length(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})"),
                 "data_offsets is -1");
}

TEST(TensorFile, NamesThatLie) {
  expect_refused(with_length(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                             "x"),
                 "'a': listed twice");
  expect_refused(with_length("{\"\xff\xfe\":{}}"), "not valid JSON in UTF-8");
  expect_refused(with_length("{\"a\\nb\":3}"), "a\\x0ab");
  expect_refused(with_length("{\"" + std::string(100000, 'n') + "\":3}"), "nnn...");
  expect_refused(with_length("{\"a\":{\"dtype\":\"" + std::string(100000, 'n') + "\"}}"),
                 "not supported");
}

TEST(TensorFile, NestedBombsAreRefusedAtOnce) {
  expect_refused(with_length(std::string(5'000'000, '[')), "expected an object");
  std::string objects;
  for (int i = 0; i < 500'000; ++i) objects += "{\"a\":";
  expect_refused(with_length(objects), "expected one string dtype");
  expect_refused(with_length(R"({"a":{"dtype":"U8","shape":)" + std::string(1'000'000, '[')),
                 "a list");
}

TEST(TensorFile, BooleansAreZeroOrOne) {
  const TemporaryFolder folder;
  write_bytes(
      folder / "a.safetensors",
      with_length(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "\x01\x02"));
  const TensorFile file(folder / "a.safetensors");
  expect_error(ExitCode::data, "neither 0 nor 1", [&] { file.read("a"); });
}

/// Any single changed byte of the header gives a file that opens or one clear error.
TEST(TensorFile, FlippedHeaderBytesNeverCrash) {
  const TemporaryFolder folder;
  write_tensor_file(folder / "a.safetensors",
                    {{"a", at::ones({2, 3})}, {"b", at::ones({3}, at::kByte)}}, {{"k", "v"}});
  const std::string whole = read_bytes(folder / "a.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  for (size_t at = 0; at < 8 + header; ++at) {
    for (const int flip : {0x01, 0x02, 0x10, 0x80, 0xff}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ flip);
      write_bytes(folder / "b.safetensors", damaged);
      try {
        const TensorFile file(folder / "b.safetensors");
        for (const auto& [name, entry] : file.entries()) file.read(name);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::data);
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      }
    }
  }
}

/// Headers changed at random, with pieces that parsers trip over: a header that holds together or
/// one clear error.
TEST(TensorFile, MutatedHeadersNeverCrash) {
  const std::string base =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"U8","shape":[3],"data_offsets":[24,27]}})";
  const std::vector<std::string> pieces{
      "{",       "}",    "[",      "]",         "\"",
      ":",       ",",    "-1",     "0",         "18446744073709551615",
      "null",    "true", "1e308",  "\"dtype\"", "\"shape\"",
      "\\ud800", "\x80", "F64",    "24",        "9223372036854775807",
      "[0,0]",   "{}",   "\"a\":", "\\u0000",   "  ",
      "\n",      "27",   "[2,3]",  "\"\"",      "__metadata__"};
  std::mt19937 random(1);
  const auto below = [&](size_t end) {
    return std::uniform_int_distribution<size_t>(0, end - 1)(random);
  };
  int accepted = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string text = base;
    for (size_t changes = 1 + below(4); changes > 0; --changes) {
      const size_t at = below(text.size() + 1), length = std::min(below(12), text.size() - at);
      switch (below(4)) {
        case 0:
          text.erase(at, length);
          break;
        case 1:
          text.insert(at, pieces[below(pieces.size())]);
          break;
        case 2:
          text.insert(at, text.substr(at, length));
          break;
        default:
          text.replace(at, length, pieces[below(pieces.size())]);
      }
    }
    try {
      uint64_t bytes = 0;
      for (const auto& [name, entry] : parse_tensor_header(text, 27, "f").entries)
        bytes += entry.bytes;
      EXPECT_EQ(bytes, 27U) << text;
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data) << text;
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST(TensorFile, FullDiskIsOneErrorAndLeavesNothing) {
  const TemporaryFolder folder;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{10}, rlim_t{1000}}) {
    const rlimit small{limit, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    expect_error(ExitCode::io, "write failed", [&] {
      write_tensor_file(folder / "a.safetensors", {{"t", at::ones({1000})}});
    });
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_TRUE(fs::is_empty(folder.path()));
  }
  std::signal(SIGXFSZ, old_handler);
}

TEST(TensorFile, FailedWriteLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_tensor_file(folder / "a.safetensors", {{"t", at::ones({2})}});
  expect_error(ExitCode::io, "absent",
               [&] { write_tensor_file(folder / "absent" / "a.safetensors", {}); });
  EXPECT_EQ(TensorFile(folder / "a.safetensors").read("t").numel(), 2);
}

}  // namespace
}  // namespace selfcal
