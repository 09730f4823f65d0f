// Plain lines for people on standard error; rank 0 speaks for all unless it is an error.
#pragma once
#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace selfcal::log {

/// Only the rank that speaks (rank 0) prints information and warnings. Call once after start-up;
/// default: speak.
void set_speaking(bool speaking);
void information(std::string_view text);
void warning(std::string_view text);

template <class... Args>
void info(fmt::format_string<Args...> text, Args&&... args) {
  information(fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> text, Args&&... args) {
  warning(fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace selfcal::log
