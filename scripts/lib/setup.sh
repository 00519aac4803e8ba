# The set-up that the scripts beside this directory share; to be sourced.
#
# It asks what is there (a module, a library, a command), never what a distribution is
# called or how old it is; the distribution only decides which packages to name for what
# is missing. Everything it says goes to stderr: stdout belongs to the program it prepares.

set -euo pipefail

root=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../..")
venv=$root/.venv
# BCC is built for the system's Python; another one first on PATH (pyenv, conda) cannot use it.
system_python=/usr/bin/python3
PATH=$PATH:/usr/sbin:/sbin

# What each kind of run needs: how to tell that it is there, the packages that bring it.
#   probe                       Debian, Ubuntu              Fedora, RHEL
needs_check="
  file:$system_python           python3                     python3
  module:ensurepip              python3-venv                python3-pip
  command:cc                    gcc,libc6-dev               gcc
"
needs_tracer="
  file:$system_python           python3                     python3
  module:ensurepip              python3-venv                python3-pip
  module:bcc.libbcc             python3-bpfcc               python3-bcc
  library:pcap                  libpcap0.8                  libpcap
"
needs_test="
  $needs_check
  $needs_tracer
  command:git                   git                         git
  command:jq                    jq                          jq
  command:nft                   nftables                    nftables
  command:iptables              iptables                    iptables-nft
  command:iptables-legacy       iptables                    iptables-legacy
  command:ip                    iproute2                    iproute
  command:bpftool               bpftool                     bpftool
  command:conntrack             conntrack                   conntrack-tools
  command:busybox               busybox-static              busybox
  command:containerd            containerd                  containerd
  command:runc                  runc                        runc
  command:prometheus            prometheus                  golang-github-prometheus
  directory:/usr/lib/cni,/opt/cni/bin,/usr/libexec/cni  containernetworking-plugins  containernetworking-plugins
"
needs_kernels="
  $needs_test
  command:qemu-system-x86_64    qemu-system-x86,seabios     qemu-system-x86-core
  command:setpriv               util-linux                  util-linux
  command:depmod                kmod                        kmod
  command:zstd                  zstd                        zstd
  command:ipvsadm               ipvsadm                     ipvsadm
  command:apt-get               apt                         apt
  command:dpkg                  dpkg                        dpkg
  file:/usr/share/keyrings/debian-archive-keyring.gpg  debian-archive-keyring  debian-keyring
"
needs_benchmark="
  $needs_tracer
  command:cc                    gcc,libc6-dev               gcc
  command:ip                    iproute2                    iproute
  command:sysctl                procps                      procps-ng
  command:iptables-restore      iptables                    iptables-nft
  command:nft                   nftables                    nftables
  command:bpftool               bpftool                     bpftool
  command:tcpdump               tcpdump                     tcpdump
  command:bpftrace              bpftrace                    bpftrace
"

doing=set-up # what its messages begin with
say() { printf '%s: %s\n' "$doing" "$*" >&2; }

# die MESSAGE HINT: the same two lines and exit code as tracer's own errors.
die() {
  printf 'error: %s: %s\nhint: %s\n' "$doing" "$1" "$2" >&2
  exit 2
}

# present PROBE: is it on this machine?
present() {
  local what=${1#*:} place
  case $1 in
    command:*) command -v "$what" >/dev/null ;;
    file:*) [ -e "$what" ] ;;
    directory:*) for place in ${what//,/ }; do [ -d "$place" ] && return; done; return 1 ;;
    library:*) compgen -G "/usr/lib/*/lib$what.so.*" >/dev/null ||
      compgen -G "/usr/lib*/lib$what.so.*" >/dev/null ;;
    module:*) "$system_python" -I -c "import $what" 2>/dev/null ;;
  esac
}

# missing KIND: a line "PROBE DEBIAN FEDORA" for each need that is not met.
missing() {
  local needs=needs_$1 probe packages
  while read -r probe packages; do
    [ -z "$probe" ] || present "$probe" || printf '%s %s\n' "$probe" "$packages"
  done <<<"${!needs}"
}

# packages COLUMN LINES: the packages of one column, each once, on one line.
packages() {
  local names
  names=$(awk -v column="$1" '{ gsub(",", " ", $column); print $column }' <<<"$2" |
    tr ' ' '\n' | awk '!seen[$0]++' | paste -sd ' ')
  # Ubuntu ships bpftool with each kernel's tools.
  [[ $distribution != *ubuntu* ]] ||
    names=${names/bpftool/linux-tools-common linux-tools-$(uname -r)}
  printf '%s' "$names"
}

# progress: on a terminal, the newest line of $log, for as long as this script lives.
progress() {
  while sleep 0.3 && kill -0 $$ 2>/dev/null; do
    printf '\r\e[K  %3d s  %.60s' "$SECONDS" "$(tail -n 1 "$log" | tr -d '\r')" >&2
  done
}

# step TEXT COMMAND…: runs it, tells how it goes, keeps its output in $log for a failure.
step() {
  local text=$1 printer="" status=0
  shift
  say "$text …"
  SECONDS=0
  [ ! -t 2 ] || { progress & printer=$!; }
  "$@" </dev/null >"$log" 2>&1 || status=$?
  [ -z "$printer" ] || { kill "$printer"; wait "$printer" || printf '\r\e[K' >&2; }
  [ "$status" != 0 ] || say "$text: done in $SECONDS s"
  return "$status"
}

# reason: what the failed step complained of, in one line.
reason() {
  { grep -aE '^ *(E|ERROR): ' "$log" || tail -n 1 "$log"; } | tail -n 1 | sed -E 's/^ *(E|ERROR): //'
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    -o DPkg::Lock::Timeout=300 "$@"
}

install_packages() {
  local names=$1
  [ "$(id -u)" = 0 ] || die "not root, and these packages are missing: $names" \
    "run it once with sudo, or: apt-get install $names"
  # The package lists of a fresh machine are absent or too old: fetch them only then.
  # shellcheck disable=SC2086 # a list of names
  step "installing $names" apt_install $names && return
  step "fetching the package lists" apt-get update ||
    die "apt-get update: $(reason)" "is the network up? then run it again"
  # shellcheck disable=SC2086
  step "installing $names" apt_install $names ||
    die "apt-get install: $(reason)" "mend that, then run it again; by hand: apt-get install $names"
}

# meet KIND: installs what is missing where that is apt's job, else says what to install.
meet() {
  local lacking
  lacking=$(missing "$1")
  [ -n "$lacking" ] || return 0
  case $distribution in
    *\ debian\ * | *\ ubuntu\ *) install_packages "$(packages 2 "$lacking")" ;;
    *\ fedora\ * | *\ rhel\ *) die "missing: $(packages 1 "$lacking")" \
      "dnf install $(packages 3 "$lacking"), then run it again" ;;
    *) die "missing: $(packages 1 "$lacking")" \
      "install what this distribution calls $(packages 2 "$lacking") (the names are Debian's)" ;;
  esac
  lacking=$(missing "$1")
  [ -z "$lacking" ] || die "still missing after the installation: $(packages 1 "$lacking")" \
    "does something shadow it? PyPI's 'bcc' is not BCC: pip uninstall bcc"
}

# fill_venv KIND: the project and its Python packages, into a new or the existing .venv.
fill_venv() {
  local project="${root}[dns,metrics,parquet,report]" made=""
  [ "$1" = tracer ] || project="${root}[dev]"
  # `incomplete` outlives a killed set-up only; `home` tells a copied or moved checkout.
  if [ -e "$venv/incomplete" ] || ! "$venv/bin/python" -I -c 'import pip' 2>/dev/null ||
    [ "$(cat "$venv/home" 2>/dev/null)" != "$home" ]; then
    made=yes
    step "making $venv" "$system_python" -m venv --clear --system-site-packages "$venv" ||
      die "python3 -m venv: $(reason)" "can $root be written to, and is there space?"
  fi
  touch "$venv/incomplete"
  # PIP_RETRIES, not an option: the pip that pip starts for the build must hear of it too.
  if ! PIP_RETRIES=1 step "installing tracer's Python packages" "$venv/bin/python" -I -m pip \
    install --no-input --disable-pip-version-check --editable "$project"; then
    [ -n "$made" ] && rm -rf "$venv" || rm -f "$venv/incomplete"
    die "pip install: $(reason)" "is the network up? then run it again"
  fi
  printf '%s' "$home" >"$venv/home"
  rm "$venv/incomplete"
}

# setup KIND: makes the machine ready for a kind of run (tracer, test, check), once.
setup() {
  local wanted stamp=$venv/ready-$1 home
  home="$root $(readlink -f "$system_python" || true)"
  wanted="$home $(cat "$root/pyproject.toml" "${BASH_SOURCE[0]}" | sha256sum)"
  [ ! -e "$venv/incomplete" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  [ -w "$root" ] && { [ ! -e "$venv" ] || [ -w "$venv" ]; } ||
    die "$venv cannot be written to" "run it once with sudo"
  # The checkout itself is the lock: no file to leave behind, gone with the process.
  exec 9<"$root"
  flock --nonblock 9 || { say "waiting for another set-up"; flock 9; }
  if [ -e "$venv/incomplete" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    distribution=" $(. /etc/os-release 2>/dev/null && echo "${ID:-} ${ID_LIKE:-}") "
    log=$(mktemp) || die "no temporary file" "is /tmp full?"
    trap 'rm -f "$log"' EXIT
    meet "$1"
    fill_venv "$1"
    printf '%s' "$wanted" >"$stamp"
    # After a run with sudo the checkout's owner can use it too.
    chown -R --reference="$root" "$venv"
    rm -f "$log"
  fi
  exec 9<&-
}
