#include "comm/agreement.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <string>

#include "base/stop_signal.hpp"

namespace selfcal {

void agree(const Communicator& ranks, const std::function<void()>& local) {
  int code = 0;
  std::string text;
  try {
    local();
  } catch (const Error& error) {
    code = static_cast<int>(error.code());
    text = error.what();
  } catch (const std::bad_alloc&) {
    code = static_cast<int>(ExitCode::io);
    text = "out of memory";
  } catch (const std::exception& error) {
    code = static_cast<int>(ExitCode::internal);
    text = error.what();
    text.resize(std::min(text.find('\n'), text.size()));  // libraries add their stack
  }
  if (code != 0 && ranks.size() > 1) text += fmt::format(" [rank {}]", ranks.world_rank());

  std::array<int32_t, 1> failed{code == 0 ? ranks.size() : ranks.rank()};
  ranks.all_reduce(std::span<int32_t>(failed), ReduceOp::min);
  const int first = failed[0];
  if (first == ranks.size()) return;

  std::array<int64_t, 2> header{code, static_cast<int64_t>(text.size())};
  ranks.broadcast(std::as_writable_bytes(std::span(header)), first);
  text.resize(static_cast<size_t>(header[1]));
  ranks.broadcast(std::as_writable_bytes(std::span(text)), first);
  const auto agreed = static_cast<ExitCode>(header[0]);
  if (agreed == ExitCode::stopped) throw Stopped();
  throw AgreedError(agreed, text);
}

bool any(const Communicator& ranks, bool value) {
  std::array<int32_t, 1> flag{value ? 1 : 0};
  ranks.all_reduce(std::span<int32_t>(flag), ReduceOp::max);
  return flag[0] != 0;
}

}  // namespace selfcal
