// Reports: JSON there and back, the page, what is pointed out, gathering from ranks.
#include "pipeline/report.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.hpp"
#include "pipeline/report_plots.hpp"

namespace selfcal {
namespace {

LinearReport linear(const std::string& name, double error, double nearest) {
  LinearReport report;
  report.name = name;
  report.rows = 576;
  report.columns = 576;
  report.bits = 4;
  report.group_size = 64;
  report.relative_error = error;
  report.nearest_error = nearest;
  report.loss = error * 100;
  report.damping = 0.01;
  return report;
}

/// A job of 30 layers and 4 ranks, of the demo's size.
RunReport demo_report() {
  RunReport report;
  report.tool = "selfcal 0.1.0";
  report.numeric_kind = "x86-64-v3, libtorch 2.11.0";
  report.job = "default";
  report.job_id = "0123456789abcdef0123456789abcdef";
  report.model = "models/smollm2-135m";
  report.architecture = "LlamaForCausalLM";
  report.method = "gptq";
  report.propagation = "sequential";
  report.layout =
      "2 generators + 2 compressors (1 shard x 2); generators join the compressors when they are "
      "done";
  report.config = "model:\n  path: models/smollm2-135m\n";
  report.finished = "2026-08-01 12:00:00";
  report.damping = 0.01;
  report.seconds = 34.5;
  report.tokens = report.tokens_sampled = 8192;
  report.sampling_seconds = 12.5;
  for (int64_t layer = 0; layer < 30; ++layer) {
    LayerReport one{layer, false, {}, {}};
    int kind = 0;
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                             "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      const double nearest =
          0.004 * (1 + kind) * std::exp(0.6 * std::sin(0.4 * static_cast<double>(layer) + kind));
      one.linears.push_back(
          linear(fmt::format("model.layers.{}.{}", layer, name), 0.55 * nearest, nearest));
      ++kind;
    }
    report.layers.push_back(one);
  }
  for (int rank = 0; rank < 4; ++rank) {
    RankReport one;
    one.rank = rank;
    one.host = "node1";
    one.device = fmt::format("cuda:{}", rank);
    one.peak_memory = 640'000'000 + 10'000'000 * rank;
    one.planned_memory = 650'000'000;
    one.bytes_read = 269'000'000;
    one.bytes_written = rank == 0 ? 71'000'000 : 10'000;
    one.bytes_sent = 120'000'000;
    one.role = rank < 2 ? "compressed" : "sampled, then compressed";
    one.threads = 1;
    double now = 0;
    for (size_t phase = 0; phase < phase_names.size(); ++phase) {
      one.seconds[phase] =
          0.3 + std::fmod(static_cast<double>(phase * 7 + static_cast<size_t>(rank) * 3), 5.0);
      one.timeline.add(static_cast<Phase>(phase), now, now + one.seconds[phase]);
      now += one.seconds[phase];
    }
    report.ranks.push_back(one);
  }
  report.perplexity = {35.21, 49.85, "wikitext.safetensors", 20, 512};
  return report;
}

TEST(Report, JsonIsReadBack) {
  RunReport report = demo_report();
  report.layers[3].linears[2].loss = std::nan("");
  report.layers[3].replayed = true;
  const std::string text = to_json(report);
  EXPECT_TRUE(to_json(report_from_json(text)) == text);
  report.calibration_loss = {2.5, 2.75, 65536};
  report.beside = as_beside(report);
  const std::string beside = to_json(report);
  EXPECT_TRUE(to_json(report_from_json(beside)) == beside);
  report.beside->calibration_loss.reset();
  EXPECT_FALSE(report_from_json(to_json(report)).beside->calibration_loss.has_value());
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json.at("schema"), 1);
  EXPECT_EQ(json.at("layers").size(), 30u);
  EXPECT_EQ(json.at("layers")[7].at("linears")[0].at("name"), "model.layers.7.self_attn.q_proj");
  EXPECT_TRUE(json.at("layers")[3].at("linears")[2].at("loss").is_null());
  EXPECT_NEAR(json.at("mean").at("bits").get<double>(), 4.25, 1e-12);
}

double seconds_of(const Timeline& timeline, Phase phase) {
  double sum = 0;
  for (const auto& span : timeline.spans) sum += span[static_cast<size_t>(phase)];
  return sum;
}

TEST(Timeline, LosesNoTimeHoweverLongTheRunIs) {
  Timeline timeline;
  double now = 0;
  for (int i = 0; i < 5000; ++i) {
    const Phase phase = i % 3 == 0 ? Phase::solve : Phase::forward;
    timeline.add(phase, now, now + 0.013);
    now += 0.013;
  }
  EXPECT_LE(timeline.spans.size(), Timeline::most_spans);
  EXPECT_GT(timeline.spans.size(), Timeline::most_spans / 2 - 1)
      << "spans grow no more than needed";
  EXPECT_NEAR(seconds_of(timeline, Phase::solve), 1667 * 0.013, 1e-4);
  EXPECT_NEAR(seconds_of(timeline, Phase::forward), 3333 * 0.013, 1e-4);
  for (size_t i = 0; i + 1 < timeline.spans.size(); ++i)
    EXPECT_NEAR(std::accumulate(timeline.spans[i].begin(), timeline.spans[i].end(), 0.0),
                timeline.span, 1e-6);
}

TEST(Timeline, KeepsTheOrder) {
  Timeline timeline;
  timeline.add(Phase::sample, 0, 1);
  timeline.add(Phase::forward, 1, 3);
  timeline.add(Phase::idle, 3, 4);
  const size_t quarter = timeline.spans.size() / 4;
  EXPECT_GT(timeline.spans[quarter / 2][static_cast<size_t>(Phase::sample)], 0);
  EXPECT_EQ(timeline.spans[2 * quarter][static_cast<size_t>(Phase::sample)], 0);
  EXPECT_GT(timeline.spans[2 * quarter][static_cast<size_t>(Phase::forward)], 0);
  EXPECT_GT(timeline.spans.back()[static_cast<size_t>(Phase::idle)], 0);
}

TEST(Report, TellsHowLongRanksWaited) {
  RunReport report;
  report.ranks.resize(2);
  report.ranks[0].seconds[static_cast<size_t>(Phase::solve)] = 9;
  report.ranks[0].seconds[static_cast<size_t>(Phase::idle)] = 1;
  report.ranks[1].seconds[static_cast<size_t>(Phase::idle)] = 10;
  EXPECT_DOUBLE_EQ(idle_share(report), 0.55);
  EXPECT_NE(report_page(report).find("waited for each other 55.0 %"), std::string::npos);
}

TEST(Report, BadJsonIsAnError) {
  const std::string good = to_json(demo_report());
  for (const std::string& bad : {std::string("{}"), std::string("["),
                                 std::string("{\"schema\": 2}"), good.substr(0, good.size() / 2)}) {
    try {
      report_from_json(bad);
      ADD_FAILURE() << bad.substr(0, 20);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data);
    }
  }
}

TEST(Report, PointsOutWhatNeedsALook) {
  RunReport report = demo_report();
  EXPECT_TRUE(needs_a_look(report).empty());
  report.layers[2].linears[6].damping = 0.04;
  report.layers[2].linears[6].damping_retries = 2;
  report.layers[4].linears[0].dead_columns = 17;
  report.layers[5].linears[0].dead_columns = 1;
  report.layers[7].linears[1].relative_error = 2 * report.layers[7].linears[1].nearest_error;
  report.perplexity->compressed = std::numeric_limits<double>::infinity();
  const auto lines = needs_a_look(report);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0],
            "1 layer needed more damping (model.layers.2.mlp.down_proj: 0.04 instead of 0.01)");
  EXPECT_EQ(lines[1],
            "2 layers have inputs that are always zero (most model.layers.4.self_attn.q_proj: 17 "
            "of 576)");
  EXPECT_TRUE(lines[2].starts_with(
      "1 layer is worse than round-to-nearest (model.layers.7.self_attn.k_proj: "));
  EXPECT_EQ(lines[3], "perplexity rose from 35.21 to inf");
}

TEST(Report, TheControlItselfIsNotWorse) {
  RunReport report = demo_report();
  for (auto& layer : report.layers)
    for (auto& one : layer.linears) one.relative_error = one.nearest_error;
  EXPECT_TRUE(needs_a_look(report).empty());
}

TEST(Report, PageIsWholeAndNeedsNothingElse) {
  RunReport report = demo_report();
  report.config = "output: <script>alert(1)</script>\n";
  report.layers[0].linears[0].relative_error = std::nan("");
  const std::string page = report_page(report);
  for (const char* forbidden : {"http", "src=", "@import", "<script", "<link"})
    EXPECT_EQ(page.find(forbidden), std::string::npos) << forbidden;
  for (const char* there :
       {"mlp.down_proj", "rank 3", "factorise", "49.85", "not finite", "&lt;script&gt;"})
    EXPECT_NE(page.find(there), std::string::npos) << there;
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_LT(page.size(), 1u << 20);
}

TEST(Report, JobsOfOtherPropagationStandBesideEachOther) {
  RunReport sequential = demo_report(), dense = demo_report();
  dense.job = "dense<1>";
  dense.propagation = "dense";
  sequential.calibration_loss = {2.5, 2.75, 65536};
  dense.calibration_loss = {2.5, 2.875, 65536};
  for (auto& layer : dense.layers)
    for (auto& one : layer.linears) one.relative_error *= 2;
  dense.layers[4].linears[1].relative_error = std::nan("");
  const fs::path folder = fs::temp_directory_path() / fmt::format("selfcal-beside-{}", getpid());
  fs::create_directories(folder);
  write_report(sequential, folder / "one.json");
  write_report(dense, folder / "other.json");
  put_beside(folder / "one.json", folder / "other.json");
  const RunReport found = report_from_json(read_text(folder / "one.json"));
  ASSERT_TRUE(found.beside);
  EXPECT_EQ(found.beside->job, "dense<1>");
  EXPECT_EQ(found.beside->propagation, "dense");
  EXPECT_DOUBLE_EQ(found.beside->calibration_loss->lost(), 0.375);
  ASSERT_EQ(found.beside->relative_errors.size(), 30u);
  EXPECT_NEAR(found.beside->relative_errors[3], 2 * mean_errors_of_layers(sequential)[3], 1e-12);
  EXPECT_TRUE(std::isnan(found.beside->relative_errors[4]));
  const std::string page = read_text(folder / "one.html");
  for (const char* there : {"Beside dense&lt;1&gt; (dense propagation)", "first 65 536 tokens",
                            "<td>2.8750</td><td>+0.3750</td>", "<td>2.7500</td><td>+0.2500</td>"})
    EXPECT_NE(page.find(there), std::string::npos) << there;
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(read_text(folder / "other.html").find("Beside"), std::string::npos);
  const auto written = fs::last_write_time(folder / "one.json");
  put_beside(folder / "one.json", folder / "other.json");
  EXPECT_EQ(fs::last_write_time(folder / "one.json"), written) << "it was there";
  fs::remove_all(folder);
}

TEST(Report, EmptyJobHasAPage) {
  RunReport report;
  report.ranks.push_back(report_of_this_rank(0, {}));
  const std::string page = report_page(report);
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(page.find("inf"), std::string::npos);
}

TEST(Report, IsGatheredAndWritten) {
  RunReport mine = demo_report();
  std::swap(mine.layers.front(), mine.layers.back());
  const RunReport whole = gather_report(Communicator::local(), mine);
  ASSERT_EQ(whole.layers.size(), 30u);
  EXPECT_EQ(whole.layers[29].layer, 29);
  EXPECT_TRUE(to_json(whole) == to_json(demo_report()));

  const fs::path folder = fs::temp_directory_path() / fmt::format("selfcal-report-{}", getpid());
  fs::create_directories(folder);
  write_report(whole, folder / "report.json");
  EXPECT_TRUE(read_text(folder / "report.json") == to_json(whole));
  EXPECT_TRUE(read_text(folder / "report.html") == report_page(whole));
  if (const char* keep = std::getenv("SELFCAL_KEEP_REPORT"))  // to look at it
    fs::copy_file(folder / "report.html", keep, fs::copy_options::overwrite_existing);
  fs::remove_all(folder);
}

TEST(Report, APageNamesTheDeviceOfEachRank) {
  const std::string page = report_page(demo_report());
  for (int rank = 0; rank < 4; ++rank)
    EXPECT_NE(page.find(fmt::format("<td>node1</td><td>cuda:{}</td>", rank)), std::string::npos);
}

TEST(Report, ThisRankHasMemoryAndFiles) {
  const RankReport rank = report_of_this_rank(2, {});
  EXPECT_EQ(rank.rank, 2);
  EXPECT_FALSE(rank.host.empty());
  EXPECT_GT(rank.peak_memory, 1 << 20);
  EXPECT_GT(rank.bytes_read, 0);
}

TEST(ReportPlots, AxesHaveRoundMarks) {
  EXPECT_EQ(plots::marks({0, 10}, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(plots::marks({0, 1}, 2).size(), 3u);
  EXPECT_EQ(plots::logarithmic_marks({0.009, 0.11}).size(), 4u);  // 0.01 0.02 0.05 0.1
  EXPECT_EQ(plots::logarithmic_marks({1e-6, 1}).size(), 7u);
}

}  // namespace
}  // namespace selfcal
