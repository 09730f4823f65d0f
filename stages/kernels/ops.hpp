// The arithmetic of the models. Every operation is cut into fixed tiles by shape; a tile is computed by one thread with
// one-thread library calls, so results do not depend on the number of threads (design: the numerical contract).
#pragma once
#include <ATen/core/Tensor.h>

#include "base/thread_pool.hpp"

namespace selfcal::kernels {

/// Where operations run: a borrowed pool that outlives every user.
struct Context {
  ThreadPool* threads = nullptr;
};

/// Call once in each thread before tensor work (also ThreadPool's on_start): library calls stay on one thread.
void use_one_library_thread();

}  // namespace selfcal::kernels
