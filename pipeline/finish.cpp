#include "pipeline/finish.hpp"
namespace selfcal {
void finish_job(const Session&, const Job&, const std::vector<LayerOutcome>&) {}
}  // namespace selfcal
