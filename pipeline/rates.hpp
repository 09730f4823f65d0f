// How fast this machine is at what a run does most, measured through the very code that runs.
#pragma once
#include <cstdint>
#include <map>

#include "comm/communicator.hpp"
#include "pipeline/config.hpp"
#include "stages/model/model.hpp"

namespace selfcal {

/// Of what is done with inputs of one width, in "useful" operations: those that the formulas of the
/// plan count.
struct WidthRates {
  double statistics = 0;  // tokens x columns^2 a second
  double sums = 0;        // columns^2 a second, made and finished once whatever the tokens; 0: free
  double factorise = 0;   // columns^3 a second
  double solve = 0;       // rows x columns^2 a second
  double panels = 0;      // columns^2 a second, packed once a solve whatever the rows; 0: free
};

/// Rates of all threads of the context it was measured with.
struct HardwareRates {
  int threads = 1;
  double forward = 0;                      // flop/s of a block over a leaf, see forward_flops()
  double decode = 0;                       // weight and cache bytes/s of a step of a micro-batch
  WidthRates wide;                         // of widths that were not measured
  std::map<int64_t, WidthRates> by_width;  // narrow inputs are slower
  double logits = 0;                       // flop/s of the head; 0: not measured

  const WidthRates& at(int64_t columns) const;
};

/// Bytes that a step of `rows` sequences reads of a block: its weights, and half of a full cache.
double step_bytes(double block_parameters, const ModelShape& shape, double element_bytes,
                  int64_t rows, int64_t length);

/// Products of a block's forward over so many tokens, in sequences of `length`.
double forward_flops(const BlockSpec& block, int64_t hidden, int64_t length, double tokens);

/// Takes some seconds. With the job's own shapes and method: its block, unless that is large, over
/// a leaf; statistics, a factor and rows of each width of input, up to 2048; a product of a step of
/// sampling. Weights and inputs are random. Independent.
HardwareRates measure_rates(const kernels::Context& context, const Model& model,
                            const RunConfig& config);

/// Collective over ranks that have measured at the same time: the lowest of each rate, since the
/// phases of a team wait for the slowest.
HardwareRates slowest(const Communicator& ranks, HardwareRates rates);

}  // namespace selfcal
