#include "stages/export/layers.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "stages/export/awq_format.hpp"
#include "stages/export/gptq_format.hpp"

namespace selfcal {
namespace {

const PackedFormat* packed_format(ExportFormat format) {
  static const PackedFormat compressed{"compressed-tensors", compressed_tensors::pack,
                                       compressed_tensors::add_quantization},
      gptq{"gptq", gptq_format::pack<gptq_format::Version::v1>,
           gptq_format::add_quantization<gptq_format::Version::v1>},
      gptq_v2{"gptq_v2", gptq_format::pack<gptq_format::Version::v2>,
              gptq_format::add_quantization<gptq_format::Version::v2>},
      awq{"awq", awq_format::pack, awq_format::add_quantization};
  switch (format) {
    case ExportFormat::compressed_tensors:
      return &compressed;
    case ExportFormat::gptq:
      return &gptq;
    case ExportFormat::gptq_v2:
      return &gptq_v2;
    case ExportFormat::awq:
      return &awq;
    case ExportFormat::dense:
      return nullptr;
  }
  return nullptr;
}

}  // namespace

Layers::Layers(const ExportInputs& inputs, ExportFormat format)
    : inputs_(inputs), format_(packed_format(format)) {}

LayerRecord Layers::outline(int64_t number) const {
  return expect_ours(outline_layer(committed(number)), number);
}

const LayerRecord& Layers::record(int64_t number) {
  if (number == number_) return record_;
  record_ = expect_ours(read_layer(committed(number), format_ == nullptr), number);
  number_ = number;
  return record_;
}

NamedTensors Layers::tensors(int64_t number) {
  const LayerRecord& layer = record(number);
  NamedTensors tensors = layer.changed;
  for (const auto& [name, linear] : layer.linears)
    if (const PackedFormat* packed = format_of(linear)) {
      compressed_tensors::scheme_of(linear, name);  // what it checks, for every format
      tensors.merge(packed->pack(name, linear));
    } else {
      tensors[name] = linear.weight;
    }
  return tensors;
}

const PackedFormat* Layers::format_of(const CompressedLinear& linear) const {
  return linear.codes.defined() ? format_ : nullptr;
}

fs::path Layers::committed(int64_t number) const {
  fs::path path = inputs_.job.layer(number);
  std::error_code error;
  if (!fs::exists(path, error))
    fail(ExitCode::data, "{}: layer {} is not committed", path.string(), number);
  return path;
}

LayerRecord Layers::expect_ours(LayerRecord record, int64_t number) const {
  if (record.layer != number || record.job_id != inputs_.job_id)
    fail(ExitCode::data, "{}: layer {} of job {}, expected layer {} of job {}",
         inputs_.job.layer(number).string(), record.layer, printable(record.job_id), number,
         inputs_.job_id);
  return record;
}

}  // namespace selfcal
