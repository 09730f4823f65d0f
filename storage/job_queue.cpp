#include "storage/job_queue.hpp"

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.hpp"

namespace selfcal {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::pair<JobState, const char*>, 4> state_names{
    {{JobState::waiting, "waiting"},
     {JobState::running, "running"},
     {JobState::done, "done"},
     {JobState::failed, "failed"}}};

JobState state_of(const std::string& text) {
  for (const auto& [state, name] : state_names)
    if (text == name) return state;
  fail(ExitCode::data, "found state '{}', expected waiting, running, done or failed", text);
}

}  // namespace

std::string to_text(JobState state) { return state_names[static_cast<size_t>(state)].second; }

void write_queue(const fs::path& path, const std::vector<QueuedJob>& jobs) {
  Json list = Json::array();
  for (const auto& job : jobs) {
    Json entry{{"name", job.name}, {"state", to_text(job.state)}};
    if (!job.job_id.empty()) entry["job_id"] = job.job_id;
    if (job.state == JobState::failed) {
      entry["code"] = job.code;
      entry["error"] = job.error;
    }
    list.push_back(std::move(entry));
  }
  const Json queue{{"schema", 1}, {"jobs", std::move(list)}};
  write_text_atomically(path, queue.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::vector<QueuedJob> read_queue(const fs::path& path) try {
  const Json queue = Json::parse(read_text(path));
  if (queue.at("schema") != 1)
    fail(ExitCode::data, "found schema {}, expected 1", queue.at("schema").dump());
  std::vector<QueuedJob> jobs;
  for (const auto& entry : queue.at("jobs"))
    jobs.push_back({entry.at("name").get<std::string>(),
                    state_of(entry.at("state").get<std::string>()),
                    entry.value("job_id", std::string()), entry.value("code", 0),
                    entry.value("error", std::string())});
  return jobs;
} catch (const nlohmann::json::exception& error) {
  fail(ExitCode::data, "{}: not a queue of selfcal: {}", path.string(), error.what());
} catch (const Error& error) {
  if (error.code() != ExitCode::data) throw;
  fail(ExitCode::data, "{}: {}", path.string(), error.what());
}

}  // namespace selfcal
