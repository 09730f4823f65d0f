# Named, timed set-up steps, shared by setup, quickstart and test. Sourced from the repository's root.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# hash_of FILE|TEXT...: one hash of the files' contents and the other words.
hash_of() {
  for input in "$@"; do
    if [ -f "$input" ]; then cat "$input"; else echo "$input"; fi
  done | sha256sum | cut -c1-16
}

seconds_since() {
  awk -v start="$1" -v now="$(date +%s.%N)" 'BEGIN { printf "%.1f s", now - start }'
}

# run_step TITLE COMMAND...: runs it, and says what and how long.
run_step() {
  local title=$1 start
  shift
  start=$(date +%s.%N)
  echo "==> $title"
  "$@" || fail "$title: failed"
  echo "    $title: $(seconds_since "$start")"
}

# once STEP TITLE KEY RESULT COMMAND...: like run_step, but only if KEY (a hash of the step's inputs) has changed since
# it last succeeded, or RESULT, a path that it makes, is gone.
once() {
  local stamp=.cache/setup/$1 title=$2 key=$3 result=$4
  shift 4
  if [ -e "$result" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
    echo "==> $title: already done"
    return
  fi
  rm -f "$stamp"
  run_step "$title" "$@"
  mkdir -p .cache/setup
  echo "$key" >"$stamp"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "needs root for: $*"
  fi
}

# install_packages FILE: the Debian packages that it lists; asks apt only for those that are missing.
install_packages() {
  local wanted missing
  wanted=$(sed 's/#.*//' "$1")
  missing=$(for package in $wanted; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done)
  if [ -z "$missing" ]; then
    echo "==> system packages ($1): already there"
    return
  fi
  run_step "system packages ($1): $(echo $missing)" apt_install $missing
}

apt_install() {
  local quiet="-q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300"
  as_root apt-get $quiet update &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get $quiet install -y --no-install-recommends "$@"
}

# python_environment FOLDER REQUIREMENTS: a fresh virtual environment with exactly the listed packages.
python_environment() {
  rm -rf "$1"
  /usr/bin/python3 -m venv "$1" && add_packages "$1" "$2"
}

# add_packages FOLDER REQUIREMENTS: exactly the listed packages besides what a virtual environment has.
add_packages() {
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r "$2"
}

# Compilers at work at once: one a core, each given 2 GB.
compile_jobs() {
  awk -v cores="$(nproc)" '/^MemAvailable/ { fit = int($2 / 2e6) }
    END { print fit < 1 ? 1 : fit < cores ? fit : cores }' /proc/meminfo
}

# build PRESET TARGET...: configures when needed, and builds.
build() {
  local preset=$1 folder
  shift
  folder=$([ "$preset" = default ] && echo build || echo "build-$preset")
  if ! grep -qs "^CMAKE_HOME_DIRECTORY:INTERNAL=$PWD\$" "$folder/CMakeCache.txt"; then
    rm -rf "$folder"
  fi
  if [ ! -f "$folder/build.ninja" ] || [ CMakePresets.json -nt "$folder/build.ninja" ]; then
    cmake --preset "$preset" || return
  fi
  cmake --build "$folder" --parallel "$(compile_jobs)" --target "${@:-all}"
}

# run_ranks N COMMAND...: mpirun with what this machine needs beyond `-n N`; says the line that it runs.
run_ranks() {
  local ranks=$1 flags="--bind-to none"
  shift
  if [ "$(id -u)" = 0 ]; then flags="$flags --allow-run-as-root"; fi
  if [ "$ranks" -gt "$(nproc)" ]; then flags="$flags --oversubscribe"; fi
  echo "\$ mpirun -n $ranks $flags $*"
  mpirun -n "$ranks" $flags "$@"
}
