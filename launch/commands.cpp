#include "launch/commands.hpp"

#include <fmt/format.h>
#include <hdf5.h>
#include <mpi.h>
#include <torch/headeronly/version.h>

#include <CLI/CLI.hpp>

namespace selfcal {

void add_commands(CLI::App& app) {
  add_run_commands(app);
  add_plan_commands(app);
  add_model_commands(app);
  add_artefact_commands(app);
}

std::string version_text() {
  return fmt::format("selfcal {}; libtorch {}; HDF5 {}.{}.{}; MPI {}.{} (Open MPI {}.{}.{})",
                     SELFCAL_VERSION, TORCH_VERSION, H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE,
                     MPI_VERSION, MPI_SUBVERSION, OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION,
                     OMPI_RELEASE_VERSION);
}

}  // namespace selfcal
