#include "storage/run_directory.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "example_layer.hpp"
#include "storage/layer_scan.hpp"
#include "storage/run_lock.hpp"
#include "temporary_folder.hpp"

namespace selfcal {
namespace {

const char* const config = "model:\n  path: m\nthreads: 2\nmethod:\n  bits: 4\n  damping: 0.01\n";

TEST(RunDirectory, IsMadeOnceAndFoundAgain) {
  const TemporaryFolder folder;
  const RunDirectory run(folder / "a/b");
  run.prepare(config);
  EXPECT_EQ(read_text(run.config()), config);
  run.prepare(config);
  run.expect_run();
  EXPECT_EQ(run.job("x").layer(7), folder / "a/b/jobs/x/layers/0007.h5");
  EXPECT_EQ(run.job("x").layer(12345).filename(), "12345.h5");
}

TEST(RunDirectory, AnotherConfigIsRefusedByName) {
  const TemporaryFolder folder;
  const RunDirectory run(folder / "run");
  run.prepare(config);
  std::string other = config;
  other.replace(other.find("bits: 4"), 7, "bits: 8");
  expect_error(ExitCode::config, "it has 'bits: 4' where this run has 'bits: 8'",
               [&] { run.prepare(other); });
  expect_error(ExitCode::config, "where this run has 'more: 1'",
               [&] { run.prepare(std::string(config) + "more: 1\n"); });
  expect_error(ExitCode::config, "where this run has nothing more", [&] {
    run.prepare(std::string(config).substr(0, std::string(config).find("  damping")));
  });
  EXPECT_EQ(read_text(run.config()), config);
}

TEST(RunDirectory, FreeKeysMayChange) {
  const TemporaryFolder folder;
  const RunDirectory run(folder / "run");
  run.prepare(config);
  std::string other = config;
  other.replace(other.find("threads: 2"), 10, "threads: 64\n# more");
  expect_error(ExitCode::config, "'threads: 2'", [&] { run.prepare(other); });
  run.prepare(other, {"threads"});
  EXPECT_EQ(read_text(run.config()), other);
  expect_error(ExitCode::config, "'bits: 4'", [&] {
    std::string bits = other;
    bits.replace(bits.find("bits: 4"), 7, "bits: 8");
    run.prepare(bits, {"threads"});
  });
}

TEST(RunDirectory, FoldersOfOthersAreRefused) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "run");
  write_bytes(folder / "run" / "thesis.tex", "x");
  const RunDirectory run(folder / "run");
  expect_error(ExitCode::config, "holds thesis.tex but no run", [&] { run.prepare(config); });
  expect_error(ExitCode::config, "no run.yaml", [&] { run.expect_run(); });
  write_bytes(folder / "file", "x");
  expect_error(ExitCode::io, "cannot create the folder",
               [&] { RunDirectory(folder / "file").prepare(config); });
  for (const char* name : {"", ".", "..", "a/b"})
    expect_error(ExitCode::config, "plain folder name", [&] { run.job(name); });
}

TEST(RunDirectory, KilledStartIsNoObstacle) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "run/logs");
  write_bytes(folder / "run" / "lock", "x");
  write_bytes(folder / "run" / ".run.yaml.77.tmp", "x");
  const RunDirectory run(folder / "run");
  run.prepare(config);
  remove_unfinished(run.path());
  EXPECT_FALSE(fs::exists(folder / "run" / ".run.yaml.77.tmp"));
  EXPECT_TRUE(fs::exists(folder / "run" / "lock"));
}

TEST(RunLock, IsHeldByOne) {
  const TemporaryFolder folder;
  {
    const RunLock lock(folder / "lock");
    expect_error(ExitCode::io, fmt::format("in use by process {}", ::getpid()),
                 [&] { RunLock second(folder / "lock"); });
    expect_error(ExitCode::io, "remove " + (folder / "lock").string(),
                 [&] { RunLock second(folder / "lock"); });
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  const RunLock again(folder / "lock");
}

/// The pid of a process that is gone.
pid_t ended_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

std::string lock_text(const std::string& host, int64_t pid, int64_t started, const std::string& job,
                      int restart) {
  return fmt::format("host: {}\npid: {}\nstarted: {}\njob: {}\nrestart: {}\n", host, pid, started,
                     job, restart);
}

TEST(RunLock, DeadProcessOnThisHostIsTakenOver) {
  const TemporaryFolder folder;
  const LockOwner self = LockOwner::current();
  write_bytes(folder / "lock", lock_text(self.host, ended_process(), 1, "", 0));
  const RunLock lock(folder / "lock");
  EXPECT_NE(read_text(folder / "lock").find(fmt::format("pid: {}\n", ::getpid())),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "lock.takeover"));
}

TEST(RunLock, ReusedPidIsTakenOver) {
  const TemporaryFolder folder;
  const LockOwner self = LockOwner::current();
  EXPECT_GT(self.started, 0);
  write_bytes(folder / "lock", lock_text(self.host, ::getppid(), 1, "", 0));
  const RunLock lock(folder / "lock");
}

TEST(RunLock, OtherHostsAreNotSecondGuessed) {
  const TemporaryFolder folder;
  write_bytes(folder / "lock", lock_text("elsewhere", 1, 1, "", 0));
  expect_error(ExitCode::io, "in use by process 1 on host elsewhere",
               [&] { RunLock lock(folder / "lock"); });
  write_bytes(folder / "lock", "");
  expect_error(ExitCode::io, "host (unknown)", [&] { RunLock lock(folder / "lock"); });
}

TEST(RunLock, RestartOfTheSameBatchJobTakesOver) {
  const TemporaryFolder folder;
  LockOwner owner = LockOwner::current();
  owner.job = "4711";
  owner.restart = 2;
  write_bytes(folder / "lock", lock_text("elsewhere", 1, 1, "4711", 2));
  expect_error(ExitCode::io, "(job 4711)", [&] { RunLock lock(folder / "lock", owner); });
  write_bytes(folder / "lock", lock_text("elsewhere", 1, 1, "4712", 1));
  expect_error(ExitCode::io, "(job 4712)", [&] { RunLock lock(folder / "lock", owner); });
  write_bytes(folder / "lock", lock_text("elsewhere", 1, 1, "4711", 1));
  const RunLock lock(folder / "lock", owner);
}

/// Many processes race for a stale lock: exactly one may get it while it is held.
TEST(RunLock, RaceForAStaleLockHasOneWinner) {
  const TemporaryFolder folder;
  for (int round = 0; round < 10; ++round) {
    write_bytes(folder / "lock", lock_text(LockOwner::current().host, ended_process(), 1, "", 0));
    int reports[2], release[2];
    ASSERT_EQ(::pipe(reports), 0);
    ASSERT_EQ(::pipe(release), 0);
    std::vector<pid_t> children;
    for (int i = 0; i < 6; ++i) {
      const pid_t child = ::fork();
      if (child == 0) {
        ::close(release[1]);
        char verdict = 'W';
        try {
          const RunLock lock(folder / "lock");
          if (::write(reports[1], &verdict, 1) != 1) ::_exit(1);
          if (::read(release[0], &verdict, 1) != 0)
            ::_exit(1);  // ends when the parent closes its end
        } catch (const Error&) {
          verdict = 'L';
          if (::write(reports[1], &verdict, 1) != 1) ::_exit(1);
        }
        ::_exit(0);
      }
      children.push_back(child);
    }
    std::string verdicts(6, ' ');
    for (char& verdict : verdicts) EXPECT_EQ(::read(reports[0], &verdict, 1), 1);
    EXPECT_EQ(std::count(verdicts.begin(), verdicts.end(), 'W'), 1) << verdicts;
    for (const int end : {release[0], release[1], reports[0], reports[1]}) ::close(end);
    for (const pid_t child : children) ::waitpid(child, nullptr, 0);
    EXPECT_TRUE(fs::is_empty(folder.path()));
  }
}

TEST(RunLock, UnwritableFolderIsAnInputOutputError) {
  expect_error(ExitCode::io, "cannot create", [] { RunLock lock("/nonexistent/lock"); });
}

/// Writes layers 0 .. count - 1 with a sequential chain.
void write_layers(const JobDirectory& job, int64_t count) {
  make_folder(job.layers());
  std::string chain;
  for (int64_t layer = 0; layer < count; ++layer) {
    const LayerRecord record = example_layer(layer);
    chain = chain_hash(record.job_id, chain, record.content_hash());
    write_layer(job.layer(layer), record, chain);
  }
}

TEST(LayerScan, SaysWhatIsThere) {
  const TemporaryFolder folder;
  const JobDirectory job(folder / "job");
  const std::string job_id = example_layer(0).job_id;
  write_layers(job, 4);
  std::string damaged = read_bytes(job.layer(1));
  damaged[damaged.size() / 2] ^= 1;
  write_bytes(job.layer(1), damaged.substr(0, damaged.size() - 100));
  LayerRecord other = example_layer(2);
  other.job_id = "other";
  write_layer(job.layer(2), other, "");
  fs::copy(job.layer(0), job.layer(5));

  const auto layers = scan_layers(job, 6, job_id);
  const std::vector expected{LayerState::good, LayerState::damaged, LayerState::other_job,
                             LayerState::good, LayerState::missing, LayerState::damaged};
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(layers[i].state, expected[i]) << i << layers[i].problem;
  EXPECT_NE(layers[1].problem.find("0001.h5"), std::string::npos);
  EXPECT_NE(layers[2].problem.find("of job other, expected " + job_id), std::string::npos);
  EXPECT_NE(layers[5].problem.find("holds layer 0, expected 5"), std::string::npos);

  write_manifest(job, job_id, layers);
  const auto manifest = nlohmann::json::parse(read_text(job.manifest()));
  EXPECT_EQ(manifest["committed"], 2);
  EXPECT_EQ(manifest["complete"], false);
  EXPECT_EQ(manifest["layers"][0]["content_hash"], example_layer(0).content_hash());
  EXPECT_EQ(manifest["layers"][2]["state"], "other_job");
}

TEST(LayerScan, ChainsTellWhatALayerWasComputedOn) {
  const TemporaryFolder folder;
  const JobDirectory job(folder / "job");
  write_layers(job, 3);
  const auto layers = scan_layers(job, 3, example_layer(0).job_id);
  EXPECT_TRUE(follows(layers[0].header, ""));
  EXPECT_TRUE(follows(layers[1].header, layers[0].header.chain));
  EXPECT_TRUE(follows(layers[2].header, layers[1].header.chain));
  EXPECT_FALSE(follows(layers[2].header, layers[0].header.chain));
  EXPECT_FALSE(follows(layers[1].header, ""));
}

}  // namespace
}  // namespace selfcal
