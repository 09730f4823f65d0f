#include <ATen/ATen.h>

#include <cstring>

#include "stages/kernels/cpu/cpu_operations.hpp"
#include "stages/kernels/cpu/tiles.hpp"

namespace selfcal::kernels {

void cpu::append(const Context&, at::Tensor& cache, const at::Tensor& positions,
                 const at::Tensor& rows) {
  const int64_t heads = cache.size(1), capacity = cache.size(2);
  const auto bytes = static_cast<size_t>(cache.size(3)) * cache.element_size();
  const auto* position = positions.const_data_ptr<int64_t>();
  const auto* from = static_cast<const char*>(rows.const_data_ptr());
  auto* to = static_cast<char*>(cache.mutable_data_ptr());
  for (int64_t s = 0; s < rows.size(0); ++s) {
    require(position[s] >= 0 && position[s] < capacity, "position {} in a cache of {}", position[s],
            capacity);
    for (int64_t head = s * heads; head < (s + 1) * heads; ++head)
      std::memcpy(to + (head * capacity + position[s]) * bytes, from + head * bytes, bytes);
  }
}

}  // namespace selfcal::kernels
