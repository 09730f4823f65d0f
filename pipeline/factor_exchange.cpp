#include "pipeline/factor_exchange.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_exchange.hpp"
#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/kernels/cpu/tiles.hpp"
#include "stages/solve/dealt_inverse.hpp"

namespace selfcal {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

/// What belongs to a factor beside U, which is large.
Tensors small_parts(const Factor& factor) {
  return {{"permutation", factor.permutation},
          {"dead", factor.dead},
          {"damping", at::tensor({factor.damping}, at::kDouble)},
          {"retries", at::tensor({static_cast<int64_t>(factor.retries)}, at::kLong)}};
}

Factor from_small_parts(const Tensors& tensors) {
  return {{},
          tensors.at("permutation"),
          tensors.at("dead"),
          tensors.at("damping").item<double>(),
          static_cast<int>(tensors.at("retries").item<int64_t>())};
}

/// The owner's, on all ranks.
Tensors share(const Communicator& team, const Tensors& tensors, int owner) {
  std::vector<std::byte> message;
  if (team.rank() == owner) message = pack_tensors(tensors);
  auto bytes = static_cast<int64_t>(message.size());
  team.broadcast(std::as_writable_bytes(std::span(&bytes, 1)), owner);
  message.resize(static_cast<size_t>(bytes));
  team.broadcast(message, owner);
  return unpack_tensors(message);
}

/// The owner's L, on all ranks.
LowerFactor share_lower(const Communicator& team, const std::optional<LowerFactor>& found,
                        int owner, const Tensors& small) {
  const auto columns = small.at("permutation").numel();
  at::Tensor packed =
      found ? pack_lower(found->lower) : at::empty({columns * (columns + 1) / 2}, at::kFloat);
  team.broadcast(bytes_of(packed), owner);
  if (found) return *found;
  return {from_small_parts(small), unpack_lower(packed, columns)};
}

}  // namespace

Factor spread_factor(const Communicator& team, Factor factor, int owner, at::Device memory,
                     const kernels::Device& device) {
  if (team.size() == 1) return factor;
  const bool owns = team.rank() == owner;
  const Tensors small = share(team, owns ? small_parts(factor) : Tensors{}, owner);
  if (!owns) {
    factor = from_small_parts(small);
    const int64_t columns = factor.permutation.numel();
    factor.upper = at::empty({columns, columns}, at::device(memory).dtype(at::kFloat));
  }
  broadcast_tensor(team, factor.upper, owner, device);
  return factor;
}

std::optional<Factor> invert_together(const Communicator& team, std::optional<LowerFactor> found,
                                      int owner, PhaseTimer& timer,
                                      const kernels::Context& context) {
  Tensors small;
  if (found) small = small_parts(found->factor);
  small = share(team, small, owner);
  if (small.empty()) return std::nullopt;
  LowerFactor lower = share_lower(team, found, owner, small);
  found.reset();
  at::Tensor part;
  agree(team, timer, [&] {
    const auto scope = timer.measure(Phase::factorise);
    part = invert_part(lower, team.rank(), team.size(), context);
  });
  lower.lower.reset();

  const auto messages = team.all_gather(bytes_of(part));
  std::vector<std::span<const float>> parts;
  for (const auto& message : messages)
    parts.emplace_back(reinterpret_cast<const float*>(message.data()),
                       message.size() / sizeof(float));
  lower.factor.upper = join_parts(parts, lower.factor.permutation.numel(), context);
  if (!kernels::all_finite(context, lower.factor.upper)) return std::nullopt;
  return lower.factor;
}

}  // namespace selfcal
