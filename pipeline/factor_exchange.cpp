#include "pipeline/factor_exchange.hpp"

#include <ATen/ATen.h>

#include "pipeline/tensor_exchange.hpp"
#include "pipeline/tensor_message.hpp"
#include "pipeline/timed_agreement.hpp"
#include "stages/solve/dealt_factor.hpp"

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

std::optional<Factor> factorise_together(const Communicator& team, const at::Tensor& hessian,
                                         const MethodSettings& settings, const std::string& name,
                                         PhaseTimer& timer, const kernels::Context& context) {
  const FactorTeam ranks{team.rank(), team.size(), [&](std::span<std::byte> data, int root) {
                           const auto scope = timer.measure(Phase::gather);
                           team.broadcast(data, root);
                         }};
  std::optional<DealtFactor> dealt;
  std::vector<std::span<std::byte>> parts;
  agree(team, timer, [&] {
    const auto scope = timer.measure(Phase::factorise);
    at_place(name, [&] { dealt.emplace(hessian, settings, ranks, context); });
  });
  {
    const auto scope = timer.measure(Phase::factorise);
    if (!dealt->factorise()) return std::nullopt;
  }
  agree(team, timer, [&] {
    const auto scope = timer.measure(Phase::factorise);
    parts = dealt->invert();
  });
  team.all_gather(parts);
  const auto scope = timer.measure(Phase::factorise);
  return dealt->join();
}

}  // namespace selfcal
