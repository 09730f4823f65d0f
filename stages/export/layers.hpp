// The committed layers of a job in the form of an export.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "stages/export/compressed_tensors.hpp"
#include "stages/export/export.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

/// How a format keeps a quantised layer, and says so in config.json.
struct PackedFormat {
  const char* name;
  NamedTensors (*pack)(const std::string& name, const CompressedLinear& linear);
  std::string (*add_quantization)(const std::string& config_text,
                                  const std::map<std::string, compressed_tensors::Scheme>& modules,
                                  const std::vector<std::string>& plain);
};

/// Reads layers one at a time; the last one stays. A layer that is missing, damaged or of another
/// job is ExitCode::data.
class Layers {
 public:
  Layers(const ExportInputs& inputs, ExportFormat format);

  /// Its tensors are stand-ins of their dtype and shape.
  LayerRecord outline(int64_t number) const;
  const LayerRecord& record(int64_t number);
  NamedTensors tensors(int64_t number);

  /// None for the dense format, and for a linear layer without codes.
  const PackedFormat* format_of(const CompressedLinear& linear) const;
  const PackedFormat* format() const { return format_; }

 private:
  fs::path committed(int64_t number) const;
  LayerRecord expect_ours(LayerRecord record, int64_t number) const;

  const ExportInputs& inputs_;
  const PackedFormat* format_;
  LayerRecord record_;
  int64_t number_ = -1;
};

}  // namespace selfcal
