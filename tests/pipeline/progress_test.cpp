// Progress lines with a clock and a stream of the test's own; JSON lines read back.
#include "pipeline/progress.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <sstream>

namespace selfcal {
namespace {

class ProgressTest : public testing::Test {
 protected:
  Progress::Settings settings(bool terminal, bool speaks = true) {
    return {speaks, &out_, terminal, 60, [this] { return now_; }};
  }
  std::string taken() {
    const std::string text = out_.str();
    out_.str({});
    return text;
  }

  std::ostringstream out_;
  double now_ = 100;
};

TEST_F(ProgressTest, RewritesOneLineOnATerminal) {
  Progress progress(settings(true));
  progress.start("sampling", 8192, "tokens");
  EXPECT_EQ(taken(), "");
  progress.update(0);
  EXPECT_EQ(taken(), "\rsampling: 0 of 8192 tokens (0 %)\033[K");
  now_ += 0.1;
  progress.update(100);
  EXPECT_EQ(taken(), "") << "not more often than five times a second";
  now_ += 0.9;
  progress.update(2048);
  EXPECT_EQ(taken(), "\rsampling: 2048 of 8192 tokens (25 %), 2048 tokens/s, 3.0 s \033[K")
      << "cut to the terminal's width";
  progress.finish();
  EXPECT_EQ(taken(), "\r\033[Ksampling: 2048 tokens in 1.0 s (2048 tokens/s)\n");
}

TEST_F(ProgressTest, PrintsALineNowAndThenElsewhere) {
  Progress progress(settings(false));
  progress.start("compressing", 30, "layers");
  progress.update(0);
  EXPECT_EQ(taken(), "");
  now_ += 9;
  progress.update(1);
  EXPECT_EQ(taken(), "");
  now_ += 11;
  progress.update(2, "layer 2");
  EXPECT_EQ(taken(),
            "compressing: 2 of 30 layers (7 %), 6.0 layers/min, 4 min 40 s left, layer 2\n");
  now_ += 180;
  progress.update(3);
  EXPECT_EQ(taken(), "compressing: 3 of 30 layers (10 %), 0.9 layers/min, 30 min 0 s left\n");
  progress.finish();
  EXPECT_EQ(taken(), "compressing: 3 layers in 3 min 20 s (0.9 layers/min)\n");
  progress.finish();
  EXPECT_EQ(taken(), "");
}

TEST_F(ProgressTest, ResumedWorkDoesNotCountAsSpeed) {
  Progress progress(settings(false));
  progress.start("compressing", 30, "layers");
  progress.update(20);
  now_ += 10;
  progress.update(25);
  EXPECT_EQ(taken(), "compressing: 25 of 30 layers (83 %), 30.0 layers/min, 10.0 s left\n");
  progress.finish();
  EXPECT_EQ(taken(), "compressing: 5 layers in 10.0 s (30.0 layers/min), 20 were there already\n");
}

TEST_F(ProgressTest, KeepsWhatIsSaidAndClearsTheLiveLine) {
  {
    Progress progress(settings(true));
    progress.start("x", 2, "y");
    progress.update(0);
    taken();
    progress.say("a warning");
    EXPECT_EQ(taken(), "\r\033[Ka warning\n");
    progress.update(1);
    EXPECT_NE(taken(), "") << "the live line is back at once";
  }
  EXPECT_EQ(taken(), "\r\033[K") << "an error leaves no half line behind";
}

TEST_F(ProgressTest, OtherRanksAreSilent) {
  Progress progress(settings(true, false));
  progress.start("x", 2, "y");
  progress.update(0);
  now_ += 1;
  progress.update(1);
  progress.say("z");
  progress.finish();
  EXPECT_EQ(taken(), "");
}

TEST(ProgressText, DurationsAndCounts) {
  EXPECT_EQ(duration_text(0.0125), "12 ms");
  EXPECT_EQ(duration_text(0.9999), "1.0 s");
  EXPECT_EQ(duration_text(12.34), "12.3 s");
  EXPECT_EQ(duration_text(59.99), "1 min 0 s");
  EXPECT_EQ(duration_text(250), "4 min 10 s");
  EXPECT_EQ(duration_text(7500), "2 h 5 min");
  EXPECT_EQ(count_text(9999), "9999");
  EXPECT_EQ(count_text(10000), "10 000");
  EXPECT_EQ(count_text(-1234567), "-1 234 567");
}

TEST(EventLogTest, AppendsOneObjectALine) {
  const fs::path file =
      fs::temp_directory_path() / fmt::format("selfcal-events-{}.jsonl", getpid());
  fs::remove(file);
  for (int time = 0; time < 2; ++time) {
    EventLog log(file, 3);
    log.write("layer", {{"layer", int64_t{7}}, {"seconds", 0.5}, {"stage", "q\"k\xff"}});
  }
  std::istringstream lines(read_text(file));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto object = nlohmann::json::parse(line);
    EXPECT_EQ(object.at("rank"), 3);
    EXPECT_EQ(object.at("event"), "layer");
    EXPECT_EQ(object.at("layer"), 7);
    EXPECT_EQ(object.at("time").get<std::string>().size(), 24u);
  }
  EXPECT_EQ(count, 2);
  fs::remove(file);
}

TEST(EventLogTest, NeverEndsARun) {
  EventLog nowhere;
  nowhere.write("x");
  EventLog refused("/dev/null/run.jsonl", 0);
  refused.write("x", {{"a", 1.0}});
  EventLog full("/dev/full", 0);
  full.write("x");
  full.write("y");
}

TEST(EventLogTest, SilentRanksLogToo) {
  const fs::path file =
      fs::temp_directory_path() / fmt::format("selfcal-silent-{}.jsonl", getpid());
  Progress progress(false);
  progress.log_to(file, 1);
  progress.start("sample", 8, "tokens");
  progress.update(8);
  progress.event("note", {{"layer", int64_t{1}}});
  progress.finish();
  const std::string text = read_text(file);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_NE(text.find("\"event\":\"finish\",\"what\":\"sample\",\"done\":8"), std::string::npos)
      << text;
  fs::remove(file);
}

}  // namespace
}  // namespace selfcal
