// Runs GoogleTest under MPI: a test passes only when it passes on every rank; output is tagged by
// rank.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <string>

namespace {

class RankListener : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.skipped()) reason_ = std::string(": ") + result.message();
    if (!result.failed()) return;
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    std::fprintf(stderr, "[ RANK %d ] %s:%d\n%s\n", rank,
                 result.file_name() ? result.file_name() : "?", result.line_number(),
                 result.summary());
  }
  void OnTestEnd(const testing::TestInfo& info) override {
    int failed = info.result()->Failed(), any = 0, rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    any_failed_ |= any != 0;
    if (rank == 0)
      std::printf("[ %s ] %s.%s%s\n",
                  any                        ? "FAILED"
                  : info.result()->Skipped() ? "SKIPPED"
                                             : "    OK",
                  info.test_suite_name(), info.name(), reason_.c_str());
    reason_.clear();
  }

 public:
  bool any_failed_ = false;

 private:
  std::string reason_;  // why the test was skipped
};

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  testing::InitGoogleTest(&argc, argv);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  auto* listener = new RankListener;
  listeners.Append(listener);
  const int result = RUN_ALL_TESTS();
  const bool failed = result != 0 || listener->any_failed_;
  MPI_Finalize();
  return failed ? 1 : 0;
}
