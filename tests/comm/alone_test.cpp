// What launchers leave in the environment, and what a rank concludes from it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "comm/mpi/mpi_backend.hpp"

namespace selfcal {
namespace {

using Environment = std::map<std::string, std::string>;

bool is_alone_in(const Environment& environment) {
  for (const char* name : {"SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK",
                           "PMI_FD", "PMIX_RANK", "PMIX_NAMESPACE"})
    unsetenv(name);
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  return is_alone();
}

TEST(Alone, WithoutALauncherOrAsItsOnlyRank) {
  EXPECT_TRUE(is_alone_in({}));
  EXPECT_TRUE(is_alone_in({{"OMPI_COMM_WORLD_SIZE", "1"}, {"PMIX_RANK", "0"}}));
  EXPECT_TRUE(is_alone_in({{"SLURM_STEP_NUM_TASKS", "1"}, {"PMIX_RANK", "0"}}));
}

TEST(Alone, NotWhereThereMayBeOthers) {
  EXPECT_FALSE(is_alone_in({{"OMPI_COMM_WORLD_SIZE", "2"}, {"PMIX_RANK", "0"}}));
  EXPECT_FALSE(is_alone_in({{"SLURM_STEP_NUM_TASKS", "4"}}));  // --mpi=none: MpiSession says so
  // mpirun of several within a step of one rank.
  EXPECT_FALSE(is_alone_in({{"SLURM_STEP_NUM_TASKS", "1"}, {"OMPI_COMM_WORLD_SIZE", "4"}}));
  // A launcher that numbers ranks and does not count them.
  EXPECT_FALSE(is_alone_in({{"PMIX_RANK", "0"}}));
  EXPECT_FALSE(is_alone_in({{"PMIX_RANK", "3"}, {"SLURM_STEP_NUM_TASKS", "1"}}));
  EXPECT_FALSE(is_alone_in({{"PMI_RANK", "0"}}));
}

}  // namespace
}  // namespace selfcal
