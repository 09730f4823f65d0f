// What the allocator does with freed memory.
#pragma once

namespace selfcal {

/// Every leaf takes and frees the same tensors: their pages stay with the process, up to a limit,
/// rather than be cleared by the kernel again each time. For the start of a program, before there
/// are threads.
void keep_freed_memory();

/// Gives the pages of all freed memory back to the system, those between tensors that live too: for
/// the end of a piece of work whose tensors do not fit the gaps of the one before. Takes
/// milliseconds.
void return_freed_memory();

}  // namespace selfcal
