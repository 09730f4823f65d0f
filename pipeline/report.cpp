#include "pipeline/report.hpp"

#include <sys/resource.h>

#include <fstream>
#include <map>
#include <tuple>

#include "base/host.hpp"

namespace selfcal {
namespace {

/// rchar and wchar of this process: bytes through read and write calls, cached or not.
std::pair<int64_t, int64_t> bytes_of_files() {
  std::ifstream io("/proc/self/io");
  std::map<std::string, int64_t> counts;
  std::string key;
  for (int64_t value = 0; io >> key >> value;) counts[key] = value;
  return {counts["rchar:"], counts["wchar:"]};
}

}  // namespace

RankReport report_of_this_rank(int rank, const PhaseSeconds& seconds) {
  RankReport report;
  report.rank = rank;
  report.seconds = seconds;
  report.host = host_name();
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0)
    report.peak_memory = static_cast<int64_t>(usage.ru_maxrss) * 1024;
  std::tie(report.bytes_read, report.bytes_written) = bytes_of_files();
  return report;
}

void write_report(const RunReport& report, const fs::path& json) {
  write_text_atomically(json, to_json(report));
  write_text_atomically(fs::path(json).replace_extension(".html"), report_page(report));
}

BesideReport as_beside(const RunReport& report) {
  return {report.job, report.propagation, mean_errors(report).compressed,
          mean_errors_of_layers(report), report.calibration_loss};
}

void put_beside(const fs::path& json, const fs::path& other) {
  const std::string before = read_text(json);
  RunReport report = report_from_json(before);
  report.beside = as_beside(report_from_json(read_text(other)));
  if (to_json(report) != before) write_report(report, json);
}

}  // namespace selfcal
