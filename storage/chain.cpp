#include "base/hash.hpp"
#include "storage/layer_file.hpp"

namespace selfcal {

std::string chain_hash(const std::string& job_id, const std::string& previous_chain,
                       const std::string& content_hash) {
  return Hasher().text(job_id).text(previous_chain).text(content_hash).digest();
}

}  // namespace selfcal
