#include "base/log.hpp"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace selfcal::log {
namespace {

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_color_mt("selfcal");
    made->set_pattern("%v");
    return made;
  }();
  return *instance;
}

}  // namespace

void set_speaking(bool speaking) {
  logger().set_level(speaking ? spdlog::level::info : spdlog::level::err);
}
void information(std::string_view text) { logger().info(text); }
void warning(std::string_view text) { logger().warn("warning: {}", text); }

}  // namespace selfcal::log
