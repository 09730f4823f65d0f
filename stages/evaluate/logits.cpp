#include "stages/evaluate/logits.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "stages/evaluate/streamed_forward.hpp"
#include "storage/dtype.hpp"
#include "storage/tensor_writer.hpp"

namespace selfcal {
namespace {

at::Tensor read_tokens(const fs::path& path) {
  const TensorFile file(path);
  if (!file.contains("input_ids")) fail(ExitCode::data, "{}: no tensor 'input_ids'", path.string());
  const TensorEntry& entry = file.entries().at("input_ids");
  if (entry.dtype != at::kLong || entry.shape.size() != 2 || entry.shape[0] == 0 ||
      entry.shape[1] == 0)
    fail(ExitCode::data, "{}: tensor 'input_ids' is {} {}, expected I64 [batch, tokens]",
         path.string(), dtype_name(entry.dtype), shape_text(entry.shape));
  return file.read("input_ids");
}

}  // namespace

void write_logits(const fs::path& model_directory, const fs::path& tokens, const fs::path& out,
                  const std::string& dtype, kernels::Context context) {
  const at::Tensor ids = read_tokens(tokens);
  const auto model = open_model(model_directory, dtype, context);
  const OuterWeights outer = model->read_outer();
  const auto leaves = streamed_forward(*model, cut_rows(ids), outer, dense_blocks(*model));
  const int64_t batch = ids.size(0), length = ids.size(1), vocabulary = model->shape().vocabulary;
  write_atomically(out, [&](const fs::path& temporary) {
    TensorWriter writer(temporary, {{"logits", planned(at::kFloat, {batch, length, vocabulary})}});
    int64_t first_row = 0;
    for (const at::Tensor& hidden : leaves)
      for (const at::Tensor& row : hidden.split(1)) {
        at::Tensor logits = at::empty({1, length, vocabulary}, at::kFloat);
        for_logits(*model, row, outer, [&](const at::Tensor& part, int64_t first) {
          logits[0].slice(0, first, first + part.size(0)).copy_(part);
        });
        writer.write_rows("logits", first_row++, logits);
      }
    writer.finish();
  });
}

}  // namespace selfcal
