# shellcheck shell=bash
# Starts and ends the programs of the cluster. Sourced by ../cluster.
#
# Each program has a file in pids/ with its id, its start time and the id of the boot. The process
# id alone is not enough, because it may belong to another process by now, which must not be ended.
#
# Functions that take_down calls use `return 0`, because a plain `return` in a trap gives the status
# from before the trap.

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# Prints the start time of a process in clock ticks since boot. The program's name may contain
# spaces, so everything up to its closing bracket is cut off first.
start_time_of() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  cut -d ' ' -f 20 <<<"$stat"
}

# pid_of COMPONENT: prints its process id, or fails if it does not run.
pid_of() {
  local pid started boot
  read -r pid started boot 2>/dev/null <"$state/pids/$1" || return 1
  [[ $boot == "$(boot_id)" && $started == "$(start_time_of "$pid")" ]] || return 1
  # A zombie is still listed, but has ended.
  [[ $(cut -d ')' -f 2 "/proc/$pid/stat" 2>/dev/null) != ' Z'* ]] || return 1
  printf '%s\n' "$pid"
}

is_running() { pid_of "$1" >/dev/null; }
is_gone() { ! is_running "$1"; }

# wait_until SECONDS WHAT COMMAND...: waits until the command succeeds.
wait_until() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= deadline)); then
      fail "timed out waiting for $what; the logs are in $state/logs"
    fi
    sleep 0.1
  done
}

# wait_for COMPONENT SECONDS COMMAND...: waits until the command succeeds, or fails at once if the
# component has ended.
wait_for() {
  local component=$1 deadline=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if is_gone "$component"; then
      tail -n 15 "$state/logs/$component.log" >&2
      fail "$component ended; the end of its log is above"
    fi
    if ((SECONDS >= deadline)); then
      tail -n 15 "$state/logs/$component.log" >&2
      fail "$component does not answer; the end of its log is above"
    fi
    sleep 0.1
  done
}

# Runs a command in the node's network. Not `ip netns exec`, because it mounts another /sys, which
# hides the cgroups.
in_node() { nsenter --net="/run/netns/$name" -- "$@"; }

port_is_open() { in_node bash -c ": <>/dev/tcp/127.0.0.1/$1"; }

start_component() {
  local component=$1
  local -a command=()
  if is_running "$component"; then return 0; fi
  "command_of_$component"
  # setsid, so that Ctrl-C ends the script but not the cluster. Descriptor 9 is the lock, which must
  # not outlive the script.
  setsid nsenter --net="/run/netns/$name" -- "${command[@]}" \
    >>"$state/logs/$component.log" 2>&1 </dev/null 9>&- &
  printf '%s %s %s\n' "$!" "$(start_time_of "$!")" "$(boot_id)" >"$state/pids/$component"
  disown "$!"
}

# stop_component COMPONENT SIGNAL: ends it, and returns when it has ended.
stop_component() {
  local pid
  if pid=$(pid_of "$1"); then
    kill -s "$2" "$pid" 2>/dev/null || true
    for ((try = 0; try < 50; try++)); do
      if is_gone "$1"; then break; fi
      sleep 0.1
    done
    if is_running "$1"; then kill -s KILL "$pid" 2>/dev/null || true; fi
    wait_until 10 "the exit of $1" is_gone "$1"
  fi
  rm -f "$state/pids/$1"
}
