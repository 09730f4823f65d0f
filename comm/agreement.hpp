// How ranks agree on errors and stops: one rank's failure becomes every rank's, at a point that all
// of them reach.
#pragma once
#include <functional>

#include "base/error.hpp"
#include "comm/communicator.hpp"

namespace selfcal {

/// An error that every rank of a communicator knows. Only rank 0 of the world prints it.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Collective over `ranks`. Each rank runs `local` (which enters no collective, and waits for none
/// of `ranks`); if it throws on any rank, every rank throws AgreedError with the text of the lowest
/// rank that failed, which is named when there are several ranks; Stopped, if that rank did.
void agree(const Communicator& ranks, const std::function<void()>& local);

/// Collective over `ranks`: true on all if it is true on one.
bool any(const Communicator& ranks, bool value);

}  // namespace selfcal
