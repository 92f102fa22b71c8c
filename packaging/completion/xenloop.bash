# Completion of xenloop(1) for bash.
_xenloop() {
  local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' each
  for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ $each == -* ]] || { command=$each && break; }
  done
  case $previous in
    --socket | --textfile) mapfile -t COMPREPLY < <(compgen -f -- "$word") && return ;;
  esac
  local words='--socket --help'
  case $command in
    '') words='status top doctor ping disable enable reload check-config quiesce resume metrics bugreport --help --version' ;;
    status) words+=' --json --all' ;;
    top) words+=' --interval --count' ;;
    ping) words+=" --count --address $(_xenloop_peers)" ;;
    disable) words+=" --seconds $(_xenloop_peers)" ;;
    enable) words+=" $(_xenloop_peers)" ;;
    reload) words+=' --dry-run' ;;
    quiesce) words+=' --holder --timeout' ;;
    metrics) words+=' --textfile' ;;
    check-config) words='--help' ;;&
    check-config | bugreport) [[ $word == -* ]] || { mapfile -t COMPREPLY < <(compgen -f -- "$word") && return; } ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}

# The domids of a guest's peers.
_xenloop_peers() {
  xenloop status --json 2>/dev/null | sed -n '/"peers"/,$ s/.*"domid": \([0-9]*\).*/\1/p'
}

complete -F _xenloop xenloop
