// The machine that this process runs on.
#pragma once
#include <string>

namespace selfcal {

/// Its name; empty where it has none.
std::string host_name();

}  // namespace selfcal
