// Many jobs of one configuration: lists, grids, names, printing, and what is wrong with them.
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "pipeline/config.hpp"
#include "tests/pipeline/minimal_config.hpp"

namespace selfcal {
namespace {

std::vector<RunConfig> parse_all(const std::string& more,
                                 const std::vector<std::string>& settings = {}) {
  return parse_jobs(minimal + more, "run.yaml", settings);
}

std::vector<std::string> names_of(const std::vector<RunConfig>& jobs) {
  std::vector<std::string> names;
  for (const auto& job : jobs) names.push_back(job.name);
  return names;
}

using Names = std::vector<std::string>;

TEST(ConfigJobs, AFileWithoutThemIsOneJob) {
  EXPECT_EQ(names_of(parse_all("")), Names{"default"});
  EXPECT_EQ(names_of(parse_all("name: mine\n")), Names{"mine"});
}

TEST(ConfigJobs, AListChangesWhatIsInCommon) {
  const auto jobs = parse_all(R"(
method: {group_size: 64}
seed: 7
jobs:
  - {method: {bits: 3}}
  - {method: {name: sparsegpt, pattern: 2:4}, seed: 1}
  - {name: own, calibration: {sequences: 16}}
)");
  EXPECT_EQ(names_of(jobs), (Names{"b3", "sparsegpt-2of4-s1", "own"}));
  EXPECT_EQ(jobs[0].method.bits, 3);
  EXPECT_EQ(jobs[0].method.group_size, 64);
  EXPECT_EQ(jobs[0].calibration.seed, 7);
  EXPECT_EQ(jobs[1].method.name, MethodName::sparsegpt);
  EXPECT_EQ(jobs[1].method.bits, 0) << "a job knows nothing of the one before it";
  EXPECT_EQ(jobs[1].calibration.seed, 1);
  EXPECT_EQ(jobs[2].calibration.sequences, 16);
}

TEST(ConfigJobs, AGridHasAJobAtEveryPoint) {
  const auto jobs = parse_all(R"(
sweep:
  method.name: [gptq, nearest]
  calibration.temperature:
    - {initial: 0.8, final: 0.8}
    - {initial: 2, final: 0.5, steps: 16}
  seed: [1]
)");
  EXPECT_EQ(names_of(jobs), (Names{"gptq-t0.8-s1", "gptq-t2.0-0.5-16-s1", "nearest-t0.8-s1",
                                   "nearest-t2.0-0.5-16-s1"}));
  EXPECT_EQ(jobs[3].method.name, MethodName::nearest);
  EXPECT_EQ(jobs[3].calibration.temperature_steps, 16);
  EXPECT_EQ(jobs[2].calibration.temperature_final, 0.8);
}

TEST(ConfigJobs, SectionsMayHoldTheAxes) {
  EXPECT_EQ(names_of(parse_all("sweep: {method: {bits: [3, 4], symmetric: [true, false]}}\n")),
            (Names{"b3-symmetric", "b3-asymmetric", "b4-symmetric", "b4-asymmetric"}));
  EXPECT_EQ(names_of(parse_all("name: demo\nsweep: {calibration: {sequences: [1, 2]}, model.path: "
                               "[a/small, 'b/odd name']}\n")),
            (Names{"demo-n1-small", "demo-n1-odd-name", "demo-n2-small", "demo-n2-odd-name"}));
}

TEST(ConfigJobs, EveryEntryOfTheListIsSwept) {
  EXPECT_EQ(
      names_of(parse_all("sweep: {seed: [0, 1]}\njobs: [{name: a}, {method: {name: awq}}]\n")),
      (Names{"a-s0", "a-s1", "awq-s0", "awq-s1"}));
}

TEST(ConfigJobs, TheCommandLineChangesWhatIsInCommon) {
  const auto jobs = parse_all("jobs: [{method: {bits: 3}}, {method: {name: nearest}}]\n",
                              {"method.bits=8", "output=elsewhere", "sweep={seed: [4, 5]}"});
  EXPECT_EQ(names_of(jobs), (Names{"b3-s4", "b3-s5", "nearest-s4", "nearest-s5"}));
  EXPECT_EQ(jobs[0].method.bits, 3);
  EXPECT_EQ(jobs[2].method.bits, 8);
  EXPECT_EQ(jobs[2].output, "elsewhere");
}

TEST(ConfigJobs, ThoseThatDifferInPropagationOnlyAreFound) {
  const auto jobs = parse_all(R"(
jobs:
  - {name: a}
  - {name: b, method: {propagation: dense}, export: [dense], evaluate: {calibration_loss: true}}
  - {name: c, method: {propagation: dense, bits: 3}}
  - {name: d, method: {propagation: dense}, seed: 1}
  - {name: e, method: {propagation: dense}, skip: []}
  - {name: f, method: {propagation: dense}, model: {path: other}}
)");
  for (const auto& one : jobs)
    for (const auto& other : jobs) {
      const std::string both = one.name + other.name;
      EXPECT_EQ(differ_in_propagation_only(one, other), both == "ab" || both == "ba") << both;
    }
}

TEST(ConfigJobs, PrintingAndReadingAreInverse) {
  const auto jobs = parse_all(R"(
overrides: [{match: up_proj, bits: 8}]
jobs: [{method: {name: nearest}, skip: []}, {model: {path: other}, export: [dense]}]
sweep: {seed: [0, 3]}
)");
  const std::string yaml = to_yaml(jobs);
  const auto again = parse_jobs(yaml, "again");
  EXPECT_EQ(to_yaml(again), yaml);
  ASSERT_EQ(names_of(again), names_of(jobs));
  for (size_t i = 0; i < jobs.size(); ++i) EXPECT_EQ(to_yaml(again[i]), to_yaml(jobs[i]));
  EXPECT_EQ(yaml.find("overrides"), yaml.rfind("overrides")) << "what is in common stands once";
  EXPECT_EQ(to_yaml(parse_all("jobs: [{name: one}]\n")), to_yaml(parse_all("name: one\n")));
}

TEST(ConfigJobs, SharedForwardsAreThoseOfOneModelAndCalibration) {
  const auto jobs = parse_all(
      "jobs: [{method: {bits: 3}}, {method: {name: nearest}}, {seed: 1}, {name: t, calibration: "
      "{temperature: {final: 0.5}}}, {model: {dtype: float32}}]\n");
  EXPECT_EQ(forward_key(jobs[0]), forward_key(jobs[1]));
  for (size_t other : {2, 3, 4}) EXPECT_NE(forward_key(jobs[0]), forward_key(jobs[other]));
}

TEST(ConfigJobs, OneIsFoundByItsName) {
  const auto jobs = parse_all("sweep: {seed: [0, 1]}\n");
  EXPECT_EQ(job_named(jobs, "s1").seed, 1);
  EXPECT_THROW(job_named(jobs, "s2"), Error);
  EXPECT_THROW(parse_config(minimal + "sweep: {seed: [0, 1]}\n", "run.yaml"), Error);
}

struct BadList {
  std::string yaml, expected;
};

class BadJobs : public testing::TestWithParam<BadList> {};

TEST_P(BadJobs, SaysWhereWhatAndWhatInstead) {
  try {
    parse_all(GetParam().yaml);
    ADD_FAILURE() << "no error: " << GetParam().yaml;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_EQ(std::string(error.what()), GetParam().expected);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Lists, BadJobs,
    testing::Values(
        BadList{"jobs: []\n",
                "run.yaml:3: jobs: found an empty list, expected a list of 1 to 1000 "
                "maps"},
        BadList{"jobs: {name: a}\n",
                "run.yaml:3: jobs: found a map, expected a list of 1 to 1000 maps"},
        BadList{"jobs:\n  - {name: a}\n  - gptq\n",
                "run.yaml:5: jobs[1]: found gptq, expected a map"},
        BadList{"jobs:\n  - {name: a}\n  - {method: {bitz: 3}}\n",
                "run.yaml:5: jobs[1].method.bitz: found an unknown key, expected "
                "jobs[1].method.bits perhaps"},
        BadList{"jobs:\n  - method:\n      bits: 3\n      bits: 4\n",
                "run.yaml:6: jobs[0].method.bits: found twice, expected once (first at "
                "run.yaml:5)"},
        BadList{
            "jobs:\n  - {method: {bits: 40}}\n",
            "run.yaml:4: jobs[0].method.bits: found 40, expected auto or 16 or integer from 2 to "
            "8"},
        BadList{"jobs:\n  - {name: a}\n  - {name: b}\n  - {name: a}\n",
                "run.yaml:6: jobs: found a second job named a, expected other values, or a name of "
                "its own (the first is at run.yaml:4)"},
        BadList{
            "jobs:\n  - {name: a, threads: 2}\n",
            "run.yaml:4: jobs[0].threads: found a setting of the whole run, expected it outside "
            "of jobs and sweep"},
        BadList{"jobs:\n  - {layout: {compressors: {shards: 2}}}\n",
                "run.yaml:4: jobs[0].layout.compressors.shards: found a setting of the whole run, "
                "expected it outside of jobs and sweep"},
        BadList{
            "jobs:\n  - {jobs: []}\n",
            "run.yaml:4: jobs[0].jobs: found an unknown key, expected one of those that `selfcal "
            "config-help` lists"},
        BadList{"jobs:\n  - {name: a}\n  - {name: w, method: {name: wanda}}\n",
                "run.yaml: job w: method.sparsity: found nothing, expected a share or "
                "method.pattern (method.name is wanda)"},
        BadList{"jobs: [{name: a}]\njobs: [{name: b}]\n",
                "run.yaml:4: jobs: found twice, expected once (first at run.yaml:3)"}));

INSTANTIATE_TEST_SUITE_P(
    Grids, BadJobs,
    testing::Values(
        BadList{"sweep: {}\n",
                "run.yaml:3: sweep: found an empty map, expected a map of keys to "
                "lists of values"},
        BadList{"sweep: [1]\n",
                "run.yaml:3: sweep: found a list, expected a map of keys to lists of values"},
        BadList{"sweep:\n  seed: []\n",
                "run.yaml:4: sweep.seed: found an empty list, expected a list of values"},
        BadList{"sweep:\n  seed: 3\n",
                "run.yaml:4: sweep.seed: found 3, expected a list of values"},
        BadList{"sweep:\n  method: {}\n  seed: []\n",
                "run.yaml:5: sweep.seed: found an empty list, expected a list of values"},
        BadList{"sweep:\n  sead: [1]\n",
                "run.yaml:4: sweep.sead: found an unknown key, expected sweep.seed perhaps"},
        BadList{
            "sweep:\n  method.bits:\n    - 3\n    - 40\n",
            "run.yaml:6: sweep.method.bits: found 40, expected auto or 16 or integer from 2 to 8"},
        BadList{"sweep:\n  method.bits: [3]\n  method: {bits: [4]}\n",
                "run.yaml:5: sweep.method.bits: found twice, expected once (first at run.yaml:4)"},
        BadList{
            "sweep:\n  seed: [1, 2, 1]\n",
            "run.yaml:4: jobs: found a second job named s1, expected other values, or a name of "
            "its own (the first is at run.yaml:4)"},
        BadList{"sweep:\n  layout.mode: [split, shared]\n",
                "run.yaml:4: sweep.layout.mode: found a setting of the whole run, expected it "
                "outside of jobs and sweep"},
        BadList{"sweep:\n  name: [a, b]\n",
                "run.yaml:4: sweep.name: found a name, expected it in jobs"},
        BadList{"sweep:\n  method: {}\n",
                "run.yaml:4: sweep: found no list of values, expected at least one"},
        BadList{"sweep: &l {method: *l}\n",
                "run.yaml:3: sweep.method.method: found an unknown key, expected sweep.method "
                "perhaps"}));

TEST(BadJobsText, GridsAreBounded) {
  std::string list = "[0";
  for (int i = 1; i < 100; ++i) list += ", " + std::to_string(i);
  list += "]";
  EXPECT_THROW(parse_all("sweep: {seed: " + list + ", calibration.set: " + list + "}\n"), Error);
}

}  // namespace
}  // namespace selfcal
